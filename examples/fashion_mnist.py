"""FashionMNIST: PyTorch's quick-start network, a perceptron with two hidden layers, learns to tell clothes apart.

    python examples/fashion_mnist.py --epochs 5

Plain gradient descent with a small learning rate, as in the quick start: in five epochs it gets about two thirds right,
and the accuracy can be watched growing.
"""

import time
from itertools import islice

import common

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import random
from fgrad_nn.data import DataLoader, FashionMNIST, ToFloat

# A network whose layers follow one upon the other needs no class of its own.
net = nn.Sequential(
    nn.Flatten(),
    nn.Linear(28 * 28, 512),
    nn.ReLU(),
    nn.Linear(512, 512),
    nn.ReLU(),
    nn.Linear(512, 10),
)
optimizer = nn.sgd(1e-3)


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


def main():
    args = common.command_line(__doc__, epochs=5, name="fashion_mnist", batch=64).parse_args()
    init_key, data_key = random.split(random.key(args.seed))
    clothes = FashionMNIST(args.data_dir)
    how = {"transform": ToFloat(), "device": args.device}
    train = DataLoader(clothes, args.batch_size or 64, shuffle=True, key=data_key, **how)
    test = DataLoader(FashionMNIST(args.data_dir, train=False), args.batch_size or 1000, **how)

    params = net.init(init_key)
    params, opt_state = fgrad.device_put((params, optimizer.init(params)), args.device)
    print(net)
    for epoch in range(1, args.epochs + 1):
        begun, losses = time.perf_counter(), []
        for x, y in (bar := common.progress(train, f"epoch {epoch}", args.limit)):
            params, opt_state, loss = step(params, opt_state, x, y)
            losses.append(loss)
            if (
                bar.n % 50 == 0
            ):  # reading a number waits for a GPU, which else goes on while Python prepares the next step
                bar.set_postfix_str(f"loss {float(loss):.3f}", refresh=False)
        losses = [float(loss) for loss in losses]
        seconds = time.perf_counter() - begun
        predicted, true = common.predictions(predict, params, islice(test, args.limit))
        correct = 100 * (predicted == true).mean()
        print(
            f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}, {seconds:.1f} s, {correct:.1f} % of the test images"
        )

    params = common.saved_and_loaded(args.save, params, args.device)
    predicted, true = common.predictions(predict, params, islice(test, args.limit))
    for i in range(min(5, len(predicted))):
        print(f"test image {i}: looks like {clothes.classes[predicted[i]]}, is {clothes.classes[true[i]]}")
    print(f"test accuracy: {100 * (predicted == true).mean():.2f} %")


if __name__ == "__main__":
    main()
