from configs.digits import common
def get_config(arg=""):
    c = common.training(common.super_resolution_stage(), "pool"); return c
