# SPDX-License-Identifier: Apache-2.0
"""Does what `ros2 service call`, `param set`, `lifecycle set` and `topic echo --once` do, by rclpy.

python3 ask.py call  recorder/start                                    # std_srvs/Trigger
python3 ask.py call  recorder/stop true                                # std_srvs/SetBool
python3 ask.py param policy_server checkpoint pillar_reach_flow
python3 ask.py state policy_server activate
python3 ask.py echo  policy_server/status                              # std_msgs/String
"""

import os
import sys

import rclpy
import yaml
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

TIMEOUT_S = 30.0
STATES = {
    'configure': Transition.TRANSITION_CONFIGURE,
    'activate': Transition.TRANSITION_ACTIVATE,
    'deactivate': Transition.TRANSITION_DEACTIVATE,
    'cleanup': Transition.TRANSITION_CLEANUP,
}


def main(what, name, *values):
    """Ask, print the answer, and return the exit code."""
    # As the launch files do: nodes of this machine see each other.
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    rclpy.init()
    node = rclpy.create_node('ask')
    if what == 'echo':
        future = Future()
        qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(String, name, future.set_result, qos)
    elif what == 'call' and values:
        future = ask(node, SetBool, name, data=bool(yaml.safe_load(values[0])))
    elif what == 'call':
        future = ask(node, Trigger, name)
    elif what == 'param' and len(values) == 2:
        parameter = Parameter(values[0], value=yaml.safe_load(values[1])).to_parameter_msg()
        future = ask(node, SetParameters, f'{name}/set_parameters', parameters=[parameter])
    elif what == 'state' and values and values[0] in STATES:
        transition = Transition(id=STATES[values[0]])
        future = ask(node, ChangeState, f'{name}/change_state', transition=transition)
    else:
        sys.exit(__doc__)
    rclpy.spin_until_future_complete(node, future, timeout_sec=TIMEOUT_S)
    if not future.done():
        sys.exit(f'no answer from {name} in {TIMEOUT_S:g} s')
    answer = future.result()
    if isinstance(answer, String):
        print(answer.data)
        return 0
    answer = answer.results[0] if hasattr(answer, 'results') else answer
    done = getattr(answer, 'successful', None) or getattr(answer, 'success', False)
    print(getattr(answer, 'message', '') or getattr(answer, 'reason', '') or ('failed', 'ok')[done])
    return 0 if done else 1


def ask(node, kind, service, **fields):
    """Call a service and return the future of its answer."""
    client = node.create_client(kind, service)
    if not client.wait_for_service(TIMEOUT_S):
        sys.exit(f'no service {service}')
    return client.call_async(kind.Request(**fields))


if __name__ == '__main__':
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
