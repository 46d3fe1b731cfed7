# AVSBench MS3: several objects sound. Starts from the same model on S4.
dataset=avsbench_ms3
clips=demo/clips_ms3
clip_flags=(--setting=ms3)
starts_from=s4_${recipe#*_}
[ "$recipe" != ms3_vct_divided ] || starts_from=s4_vct # S4 has no recipe whose frames meet
