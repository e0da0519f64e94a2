"""Handwritten digits, offline, in seconds: trains a small convolutional network and shows what was compiled for it.

    python examples/digits.py

The data come with scikit-learn: 1,437 training and 360 test images of 8 by 8 pixels. The network is described by
`net`, its weights are values; the training step is one pure function, which `fgrad.jit` traces to a graph and
compiles to one native program. The images are shifted at random while training, by a compiled program as well.
"""

import time
from itertools import islice

import common

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import random
from fgrad_nn.data import Compose, DataLoader, Digits, RandomCrop, ToFloat

EPOCHS, BATCH = 30, 32
STEPS = EPOCHS * (1437 // BATCH)

net = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),  # (N, 1, 8, 8) -> (N, 32, 8, 8)
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),  # -> (N, 64, 4, 4)
    nn.Flatten(),
    nn.Linear(64 * 4 * 4, 128),
    nn.ReLU(),
    nn.Linear(128, 10),
)
optimizer = nn.adam(nn.cosine_decay(2e-3, STEPS, end=1e-5))  # the steps get smaller towards the end


def loss_of(params, x, y):
    return nn.cross_entropy(net(params, x), y)


# Forward, loss, backward and update in one program. Donated arguments lend their memory to the results: the new
# weights are written over the old ones.
@fgrad.jit(donate=(0, 1))
def step(params, opt_state, x, y):
    loss, grads = fgrad.value_and_grad(loss_of)(params, x, y)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return nn.apply_updates(params, updates), opt_state, loss


@fgrad.jit
def predict(params, x):
    return fnp.argmax(net(params, x), axis=1)


def main():
    args = common.command_line(__doc__, epochs=EPOCHS, name="digits", batch=BATCH).parse_args()
    init_key, data_key = random.split(random.key(args.seed))
    shift = Compose([RandomCrop(8, padding=1), ToFloat()])
    batch, there = args.batch_size or BATCH, args.device
    train = DataLoader(
        Digits(), batch, shuffle=True, drop_last=True, key=data_key, transform=shift, device=there
    )
    test = DataLoader(Digits(train=False), args.batch_size or 360, transform=ToFloat(), device=there)

    params = net.init(init_key)
    params, opt_state = fgrad.device_put((params, optimizer.init(params)), there)
    print(net)
    x, y = next(train.batches(0))
    print("\nThe training step, compiled:", step.lower(params, opt_state, x, y).show(), sep="\n", end="\n\n")

    begun = time.perf_counter()
    for x, y in (bar := common.progress(train, "training", args.limit, args.epochs)):
        params, opt_state, loss = step(params, opt_state, x, y)
        if (
            bar.n % 20 == 0
        ):  # reading a number waits for a GPU, which else goes on while Python prepares the next step
            bar.set_postfix_str(f"loss {float(loss):.4f}", refresh=False)
    print(f"{bar.n} steps in {time.perf_counter() - begun:.1f} s")

    params = common.saved_and_loaded(args.save, params, there)
    predicted, true = common.predictions(predict, params, islice(test, args.limit))
    print(f"test accuracy: {100 * (predicted == true).mean():.2f} %")


if __name__ == "__main__":
    main()
