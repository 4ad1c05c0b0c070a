"""Making rollouts: sampling rules, the jitted loop, and the host side around it."""
