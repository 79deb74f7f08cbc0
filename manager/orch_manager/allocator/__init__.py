"""Hands out what must not be handed out twice: subnets, virtual addresses, task addresses, published ports."""
