"""The command `t2im`: one small file per command; heavy imports happen inside."""
