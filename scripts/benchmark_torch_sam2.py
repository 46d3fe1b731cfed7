"""PyTorch's side of scripts/benchmark.py for task track: transformers' SAM2."""

import sys

import torch
from absl import flags
from benchmark_torch_case import make_case
from benchmark_worker import Case, serve
from ml_collections import ConfigDict
from sam2_transformers import video_config
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession


def make_model(config: ConfigDict, device: str) -> Sam2VideoModel:
    side = config.data.image_size
    return Sam2VideoModel(video_config(config.model, side)).eval().to(device)


def encoder(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Images to the three maps."""
    side = config.data.image_size

    def build(device):
        model = make_model(config, device)
        images = torch.randn(values.frames, 3, side, side, device=device)
        return torch.no_grad()(lambda: model.get_image_features(images))

    return make_case(build, values, values.frames)


def decoder(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Maps and a click to three masks, also at full size."""
    side, width = config.data.image_size, config.model.width

    def build(device):
        model = make_model(config, device)
        maps = [
            torch.randn(values.frames, channels, side // stride, side // stride, device=device)
            for channels, stride in ((width // 8, 4), (width // 4, 8), (width, 16))
        ]
        points = torch.full((values.frames, 1, 1, 2), side / 2, device=device)
        labels = torch.ones((values.frames, 1, 1), dtype=torch.int32, device=device)
        inputs = {"input_points": points, "input_labels": labels, "image_embeddings": maps}
        return torch.no_grad()(lambda: model._single_frame_forward(**inputs))

    return make_case(build, values, values.frames)


def memory(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """A tracked frame behind a full memory: attention, decoder, memory encoder."""
    side, count = config.data.image_size, config.model.num_maps + 1

    def build(device):
        model = make_model(config, device)
        session = Sam2VideoInferenceSession(
            video=torch.randn(1, 3, side, side).expand(count, -1, -1, -1),
            video_height=side,
            video_width=side,
            inference_device=device,
            dtype=torch.float32,  # the default is a string, which its own code does not accept
        )
        index = session.obj_id_to_idx(1)
        points = torch.full((1, 1, 1, 2), side / 2)
        labels = torch.ones((1, 1, 1), dtype=torch.int32)
        session.add_point_inputs(index, 0, {"point_coords": points, "point_labels": labels})
        session.obj_with_new_inputs = [1]
        for number in range(count):
            model(session, frame_idx=number)
        return torch.no_grad()(lambda: model(session, frame_idx=count - 1))

    return make_case(torch.no_grad()(build), values, 1)


BUILDERS = {"sam2_encoder": encoder, "sam2_decoder": decoder, "sam2_memory": memory}

if __name__ == "__main__":
    sys.exit(serve(sys.argv, BUILDERS, __doc__))
