"""Files of other tools turned into plain PEFT folders, offline and in a process of their own. No torch, no pickle."""
