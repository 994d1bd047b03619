"""Communication between ranks: collectives, traffic ledger, failure monitor and rendezvous."""
