"""Plain nnU-Net on an exported folder, as its commands do it. Runs in a side environment alone: ``nnunet_drive.py WORK``.

WORK holds ``export/`` (of an encoder), ``segmenter/`` (of a segmenter), ``raw/DatasetXXX_NAME/``, ``images/`` and ``input.npy``. The entry points of
nnU-Net's console scripts are called in one process, to import torch once; a short epoch is all that is changed. What the test looks at is
written to ``found.json`` and ``*.npy``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

WORK = Path(sys.argv[1] if __name__ == "__main__" else ".").resolve()
NAME, NUMBER = "Dataset501_Phantoms", "501"


def entry(function, *arguments: object) -> None:
    sys.argv = [function.__name__, *map(str, arguments)]
    function()


def main() -> None:
    for folder in ("raw", "preprocessed", "results"):
        (WORK / folder).mkdir(exist_ok=True)
        os.environ[f"nnUNet_{folder}"] = str(WORK / folder)
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    started, times = time.time(), {}

    def lap(name: str) -> None:
        times[name] = round(time.time() - started, 1)

    import numpy as np
    import torch
    from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as planning
    from nnunetv2.inference import predict_from_raw_data as predicting
    from nnunetv2.run import run_training
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    lap("import")
    export = WORK / "export"
    entry(planning.extract_fingerprint_entry, "-d", NUMBER, "-np", 1)
    lap("fingerprint")
    for file in (export / "ctfoundryPlans.json", WORK / "raw" / NAME / "dataset.json"):
        shutil.copy(file, WORK / "preprocessed" / NAME)
    entry(planning.preprocess_entry, "-d", NUMBER, "-plans_name", "ctfoundryPlans", "-c", "3d_fullres", "-np", 1)
    lap("preprocess")

    start = nnUNetTrainer.on_train_start

    def short(trainer: nnUNetTrainer) -> None:
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
        start(trainer)
        torch.save(trainer.network.state_dict(), WORK / "before.pth")

    nnUNetTrainer.on_train_start = short
    train = (NUMBER, "3d_fullres", "0", "-p", "ctfoundryPlans", "-device", "cpu")
    entry(run_training.run_training_entry, *train, "-pretrained_weights", export / "pretrained.pth")
    torch.set_num_threads(1)
    lap("train")
    model = WORK / "results" / NAME / "nnUNetTrainer__ctfoundryPlans__3d_fullres"
    after = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    before, ours = torch.load(WORK / "before.pth"), torch.load(export / "pretrained.pth")["network_weights"]
    found = {
        "equal": sorted(name for name in before if torch.equal(before[name], ours[name])),
        "other": sorted(name for name in before if not torch.equal(before[name], ours[name])),
        "moved": sum(not torch.equal(before[name], after[name]) for name in before),
    }
    same = ("-npp", 1, "-nps", 1, "-device", "cpu")
    entry(
        predicting.predict_entry_point,
        *("-d", NUMBER, "-c", "3d_fullres", "-f", 0, "-p", "ctfoundryPlans"),
        *("-i", WORK / "images", "-o", WORK / "tuned", "--disable_tta", *same),
    )
    lap("predict")
    trained = WORK / "segmenter" / "trained"
    entry(
        predicting.predict_entry_point_modelfolder,
        *("-m", trained, "-f", "all", "-i", WORK / "images", "-o", WORK / "labels", *same),
        *("-step_size", 0.375, "--disable_tta"),
    )
    lap("segment")

    # the network that the plans name, with the weights, on the test's own input
    manager = PlansManager(str(trained / "plans.json"))
    plan = manager.get_configuration("3d_fullres")
    weights = torch.load(trained / "fold_all" / "checkpoint_final.pth")["network_weights"]
    classes = len(json.loads((trained / "dataset.json").read_text())["labels"])
    for deep in (False, True):
        network = get_network_from_plans(
            plan.network_arch_class_name,
            plan.network_arch_init_kwargs,
            plan.network_arch_init_kwargs_req_import,
            1,
            classes,
            deep_supervision=deep,
        )
        network.load_state_dict(weights)
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(np.load(WORK / "input.npy")))
        if deep:
            found["deep"] = [list(x.shape) for x in logits]
        else:
            np.save(WORK / "logits.npy", logits.numpy())
    for image in sorted((WORK / "images").iterdir()):
        data, _, _ = plan.preprocessor_class(verbose=False).run_case(
            [str(image)], None, manager, plan, str(trained / "dataset.json")
        )
        np.save(WORK / f"{image.name}.npy", data)
    lap("all")
    (WORK / "found.json").write_text(json.dumps(found | {"seconds": times}))


if __name__ == "__main__":
    main()
