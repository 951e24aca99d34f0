"""The zoo: every architecture, found, halved and proved, side by side with Torch-Pruning. `make zoo`.

`entries` lists the models; `ours` and `rival` measure one of them; `child` gives each a process and a limit; `store`
keeps what was measured; `judgement`, `table` and `picture` say what it means.
"""
