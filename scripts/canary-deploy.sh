#!/bin/sh
# `dwcp ops canary-deploy` by the name that the playbook uses.
exec "$(dirname "$(readlink -f "$0")")/../.venv/bin/dwcp" ops canary-deploy "$@"
