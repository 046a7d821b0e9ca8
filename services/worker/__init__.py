"""The worker: runs forward passes. It owns weights, KV memory and token buffers.

It never chooses what to run: plans come from a scheduler and run in order. Start with `engine`
(plan in, result out); `service` puts it on a link, `device_thread` between the two.
"""
