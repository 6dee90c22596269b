"""How attention is computed: the call, the choice of an implementation, the implementations."""
