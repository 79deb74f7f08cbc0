"""The wire contract: protobuf messages and services, defaults and limits."""
