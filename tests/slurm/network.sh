#!/bin/sh
# One side of the links between a cluster's nodes, in network, mount and host name namespaces of its own:
#
#     network.sh head FOLDER                                    the head node and its switch, till input ends
#     network.sh node FOLDER NAME ADDRESS RATE BURST COMMAND... a node, which then runs COMMAND
#
# FOLDER holds the file hosts and an empty folder sys. RATE and BURST are tc's (100mbit, 128kb), or "" for
# a link as fast as the machine. The head is process 1 of their process namespace: by that a node finds it.
set -e

what=$1
mount --bind "$2/hosts" /etc/hosts
# A /sys that shows this namespace's links; slurmd looks for the cgroups in it.
mount -t sysfs sysfs "$2/sys"
mount --rbind /sys/fs/cgroup "$2/sys/fs/cgroup"
mount --rbind "$2/sys" /sys
ip link set lo up

if [ "$what" = head ]; then
    hostname head
    ip link add switch type bridge
    ip addr add 10.77.0.254/24 dev switch
    ip link set switch up
    echo ready
    exec env --ignore-signal=CHLD cat
fi

name=$3 address=$4 rate=$5 burst=$6
shift 6
hostname "$name"
nsenter --target=1 --net ip link delete "$name" 2>/dev/null || true # of a node that crashed
ip link add eth0 type veth peer name "$name" netns 1
ip addr add "$address/24" dev eth0
if [ -n "$rate" ]; then
    tc qdisc add dev eth0 root tbf rate "$rate" burst "$burst" latency 100ms
    nsenter --target=1 --net tc qdisc add dev "$name" root tbf rate "$rate" burst "$burst" latency 100ms
fi
ip link set eth0 up
nsenter --target=1 --net ip link set "$name" master switch up
exec "$@"
