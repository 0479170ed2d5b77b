from configs.digits import common
def get_config(arg=""):
    c = common.training(common.base_stage(), "pool"); return c
