# AVSBench S4: one object sounds, silent ones move just as much.
dataset=avsbench_s4
clips=demo/clips
clip_flags=(--setting=s4)
