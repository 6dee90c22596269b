"""placeholder"""

from lenext.config import read_arg


def quickstart(config):
    config.training.update(steps=1500, log_every=50, eval_every=500, checkpoint_every=500)
    config.eval.methods = "softmax,infoscale,log_length,pi,ntk,yarn,rerope,rerope+infoscale,rerope+log_length,lm_infinite,windowed"
    config.eval.lengths = "64,128,256,512,1024,2048,4096"


def get_config(arg=None):
    return read_arg(arg, {"": quickstart})
