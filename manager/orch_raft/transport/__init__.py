"""How members' messages travel: `seam` is what the engine asks for, `client` and `service` do it over gRPC."""
