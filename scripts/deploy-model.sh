#!/bin/sh
# `dwcp model deploy` by the name that the playbook uses.
exec "$(dirname "$(readlink -f "$0")")/../.venv/bin/dwcp" model deploy "$@"
