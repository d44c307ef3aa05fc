"""The conformance table: problems over every cone, and an oracle for their true gradients."""
