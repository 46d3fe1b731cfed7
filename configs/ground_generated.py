"""QD-DETR with its fork's gates on generated videos with sound, or on a folder of your own.

Data:    avs-jax clips --setting=moments --output=clips
         python scripts/extract_features.py --config=configs/ground_generated.py --folder=clips
         avs-jax data build --dataset=own_moments --manual_dir=clips \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/ground_generated.py --workdir=DIR
Features need no weights: colors, mel bands and hashed words. Those of trained backbones, here of
full size (a run of s4_ama:demo has 256 and 512):
    --config.data.features.frames=backbone --config.data.features.frame_weights=runs/s4_ama
    --config.data.features.sound=vggish --config.data.features.sound_weights=runs/s4_ama
    --config.data.video_dims="(1024,)" --config.data.audio_dim=2048
    --config.data.features.text=encoder --config.data.features.text_weights=checkpoints/roberta
    --config.data.features.tokenizer=tokenizer.json --config.data.text_dim=768
`:demo` is the same recipe on the records of scripts/demo.sh; `:tiny` is for tests.
"""

from ml_collections import ConfigDict

from configs import ground
from configs.base import check_variant


def get_config(variant: str = "") -> ConfigDict:
    config = ground.ground_config()
    config.name = "ground_generated"
    data = config.data
    data.dataset = "own_moments"
    data.update(max_clips=30, max_words=8, max_windows=2)
    # How the rows of a video are made (avs_jax/inference/clip_features.py), for
    # scripts/extract_features.py and for prediction alike.
    data.features = ConfigDict(
        {
            "frames": "colors",  # | "backbone"
            "sound": "mel",  # | "vggish" | "" (none)
            "text": "hashed",  # | "encoder"
            "frame_weights": "",  # of the backbone: a run's workdir or converted weights
            "sound_weights": "",  # of VGGish
            "text_weights": "",  # of the text encoder
            "tokenizer": "",  # of a converted text encoder: tokenizer.json or vocabulary.json
            "image_size": 224,  # px, for converted weights; a run has its own
        }
    )
    data.update(video_dims=(80,), audio_dim=128, text_dim=64)
    data.normalize = "none"
    data.energy = True
    data.num_workers = 1

    model = config.model
    model.update(hidden_dim=64, num_heads=4, ffn_dim=128, num_queries=6)
    model.update(input_dropout=0.1)
    model.fusion = ground.custom("elementwise")
    model.fusion.num_layers = 1

    config.optim.update(learning_rate=1e-3, weight_decay=1e-3, clip_norm=0.5)
    config.optim.update(warmup_steps=200, power=0.9)
    train = config.train
    train.update(steps=5000, batch_size=32, eval_every=1000, checkpoint_every=1000)
    train.final_splits = ("val", "test")
    config.evaluate.update(split="test", num_pictures=6)
    config.evaluate.post_process.max_seconds = 60.0
    check_variant(variant, "demo", "tiny")
    if variant == "demo":
        config.name += "_demo"
        data.data_dir = "demo/tfds"
        return config
    widths = {key: data[key] for key in ("video_dims", "audio_dim", "text_dim")}
    ground.shrink(config, variant)
    data.update(widths)  # the features are what they are
    return config
