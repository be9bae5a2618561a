"""The pool as the operator of others: an endpoint where their gateways report requests, which scales servers up."""
