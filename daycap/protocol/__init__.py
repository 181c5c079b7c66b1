"""What runner, counter and worker agree on: messages, the counter, when to resend."""
