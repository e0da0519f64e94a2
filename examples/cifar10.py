"""CIFAR-10: the network of PyTorch's tutorial "Training a classifier" on photographs of ten kinds of things.

    python examples/cifar10.py --epochs 2 --plot runs/cifar10

Batches of four are where a compiled step gains most: an epoch is 12,500 steps of little arithmetic. `--plot FOLDER`
writes the loss curve and a grid of test photographs with their predictions as PNG. `--augment` crops and mirrors the training
images at random, in the same compiled pass that reads and normalises a batch; it pays in longer runs.
"""

import pathlib
import time

import common
import numpy as np

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import random
from fgrad_nn.data import CIFAR10, Compose, DataLoader, Normalize, RandomCrop, RandomHorizontalFlip, ToFloat


class LeNet(nn.Module):
    def __init__(self):
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, p, x):
        x = self.pool(nn.relu(self.conv1(p["conv1"], x)))  # (N, 3, 32, 32) -> (N, 6, 14, 14)
        x = self.pool(nn.relu(self.conv2(p["conv2"], x)))  # -> (N, 16, 5, 5)
        x = nn.relu(self.fc1(p["fc1"], x.reshape(len(x), -1)))
        x = nn.relu(self.fc2(p["fc2"], x))
        return self.fc3(p["fc3"], x)


net = LeNet()
optimizer = nn.sgd(1e-3, momentum=0.9)


def loss_of(params, x, y):
    return nn.cross_entropy(net(params, x), y)


@fgrad.jit(donate=(0, 1))
def step(params, opt_state, x, y):
    loss, grads = fgrad.value_and_grad(loss_of)(params, x, y)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return nn.apply_updates(params, updates), opt_state, loss


@fgrad.jit
def predict(params, x):
    return fnp.argmax(net(params, x), axis=1)


def plot(folder, losses, photographs, predicted):
    """The loss curve, and the first 32 test photographs with what they were taken for (red where wrong)."""
    import matplotlib

    matplotlib.use("Agg")  # draws to files; needs no screen
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    window = max(1, min(500, len(losses) // 10))
    smooth = np.convolve(losses, np.full(window, 1 / window), "valid")
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(np.arange(len(smooth)) + window, smooth)
    axes.set(
        xlabel="step", ylabel=f"training loss, mean of {window} steps", title="CIFAR-10, LeNet, batches of 4"
    )
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=120, bbox_inches="tight")

    figure, grid = plt.subplots(4, 8, figsize=(12, 7))
    for axes, image, true, guess in zip(grid.flat, photographs.images, photographs.labels, predicted):
        axes.imshow(image.transpose(1, 2, 0))
        right, names = true == guess, photographs.classes
        axes.set_title(
            names[guess] if right else f"{names[guess]}\n(is {names[true]})",
            color="black" if right else "red",
            fontsize=9,
        )
    for axes in grid.flat:
        axes.axis("off")
    figure.tight_layout()
    figure.savefig(folder / "predictions.png", dpi=120, bbox_inches="tight")
    print(f"wrote {folder / 'loss.png'} and {folder / 'predictions.png'}")


def main():
    parser = common.command_line(__doc__, epochs=2, name="cifar10", batch=4)
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FOLDER", help="write loss.png and predictions.png there"
    )
    parser.add_argument(
        "--augment", action="store_true", help="crop and mirror the training images at random"
    )
    args = parser.parse_args()
    init_key, data_key = random.split(random.key(args.seed))
    scale = [ToFloat(), Normalize(0.5, 0.5)]  # pixels from -1 to 1
    moved = [RandomCrop(32, padding=4), RandomHorizontalFlip()] if args.augment else []
    photographs = CIFAR10(args.data_dir, train=False)
    train = DataLoader(
        CIFAR10(args.data_dir),
        args.batch_size or 4,
        shuffle=True,
        key=data_key,
        transform=Compose([*moved, *scale]),
        device=args.device,
    )
    test = DataLoader(photographs, args.batch_size or 1000, transform=Compose(scale), device=args.device)

    params = net.init(init_key)
    params, opt_state = fgrad.device_put((params, optimizer.init(params)), args.device)
    print(net)
    losses = []
    for epoch in range(1, args.epochs + 1):
        begun = time.perf_counter()
        for x, y in (bar := common.progress(train, f"epoch {epoch}", args.limit)):
            params, opt_state, loss = step(params, opt_state, x, y)
            losses.append(loss)
            if len(losses) % 500 == 0:  # the loss of four images says little: show the mean of many
                losses = [float(loss) for loss in losses]  # (reading a number waits for a GPU)
                bar.set_postfix_str(f"loss {np.mean(losses[-500:]):.3f}", refresh=False)
        losses = [float(loss) for loss in losses]
        print(f"epoch {epoch}: loss {np.mean(losses[-bar.n :]):.4f}, {time.perf_counter() - begun:.1f} s")

    params = common.saved_and_loaded(args.save, params, args.device)
    predicted, true = common.predictions(predict, params, common.progress(test, "test", args.limit))
    if args.plot:
        plot(args.plot, losses, photographs, predicted)
    for i, name in enumerate(photographs.classes):
        print(f"accuracy for {name + ':':12} {100 * (predicted == true)[true == i].mean():5.1f} %")
    print(f"test accuracy: {100 * (predicted == true).mean():.2f} %")


if __name__ == "__main__":
    main()
