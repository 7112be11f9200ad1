"""Networks, losses and priors; nothing here depends on shapes or model families."""
