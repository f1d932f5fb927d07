#!/bin/bash
# DevStack plugin: builds and starts sealblk-agent, puts the Nova plugin into Nova's environment,
# configures nova-compute, and makes an encrypted volume type. See README.md beside this file.
#
# DevStack sources it with MODE (stack, unstack, clean) and PHASE. It runs with `xtrace` and `errexit`
# as DevStack has them.

_sealblk_source=${SEALBLK_DIR:-$DEST/sealblk}
_sealblk_unit=devstack@sealblk-agent.service

function _sealblk_programs {
    if [[ -n "$SEALBLK_BIN_DIR" ]]; then
        echo "$SEALBLK_BIN_DIR"
    else
        echo "$_sealblk_source/target/release"
    fi
}

function install_sealblk {
    if [[ -z "$SEALBLK_BIN_DIR" ]]; then
        (cd "$_sealblk_source" && cargo build --locked --release -p sealblk-backend -p sealblk-cli)
    fi
    local program
    for program in sealblkd sealblk-agent sealblk; do
        sudo install -m 0755 "$(_sealblk_programs)/$program" "/usr/local/bin/$program"
    done
    sudo install -D -m 0644 "$_sealblk_source/dist/sysusers.d/sealblk.conf" /etc/sysusers.d/sealblk.conf
    sudo install -D -m 0644 "$_sealblk_source/dist/tmpfiles.d/sealblk.conf" /etc/tmpfiles.d/sealblk.conf
    sudo systemd-sysusers /etc/sysusers.d/sealblk.conf
    sudo systemd-tmpfiles --create /etc/tmpfiles.d/sealblk.conf
    sudo install -D -m 0644 "$_sealblk_source/dist/systemd/sealblk.slice" /etc/systemd/system/sealblk.slice
    # nova.virt.sealblk has to lie in Nova's own directory, and DevStack has Nova as an editable
    # checkout: a link there, and the package itself beside Nova's others.
    pip_install "$_sealblk_source/nova-plugin" --no-deps
    ln -sfn "$_sealblk_source/nova-plugin/nova/virt/sealblk" "$NOVA_DIR/nova/virt/sealblk"
}

function configure_sealblk {
    sudo mkdir -p /etc/sealblk
    # nova-compute is DevStack's user here. Units of daemons come from the agent.
    sudo tee /etc/sealblk/agent.toml >/dev/null <<EOF
[agent]
allow_users = ["$STACK_USER"]
socket_group = "$(id -gn "$STACK_USER")"
daemon = "/usr/local/bin/sealblkd"
unit_properties = ["Slice=sealblk.slice", "KillMode=mixed"]
EOF
    if [[ -n "$SEALBLK_KEYS_TOML" ]]; then
        sudo install -m 0600 "$SEALBLK_KEYS_TOML" /etc/sealblk/keys.toml
    fi
    /usr/local/bin/sealblk-agent --check --config /etc/sealblk/agent.toml
    local conf
    for conf in "$NOVA_CPU_CONF" "$NOVA_CONF"; do
        iniset "$conf" sealblk adopt_providers luks,luks2
        iniset "$conf" sealblk key_access "$SEALBLK_KEY_ACCESS"
    done
    iniset "$NOVA_CPU_CONF" DEFAULT compute_driver sealblk.SealLibvirtDriver
    if [[ -d /etc/apparmor.d ]]; then
        sudo install -D -m 0644 "$_sealblk_source/dist/apparmor/sealblk" \
            /etc/apparmor.d/abstractions/libvirt-qemu.d/sealblk
    fi
}

function start_sealblk {
    # Root, unlike DevStack's other services.
    sudo sed -e 's|/usr/bin/sealblk-agent|/usr/local/bin/sealblk-agent|' \
        "$_sealblk_source/dist/systemd/sealblk-agent.service" |
        sudo tee "/etc/systemd/system/$_sealblk_unit" >/dev/null
    sudo systemctl daemon-reload
    sudo systemctl restart "$_sealblk_unit"
}

function create_sealblk_volume_type {
    openstack volume type show "$SEALBLK_VOLUME_TYPE" >/dev/null 2>&1 || openstack volume type create \
        --encryption-provider "$SEALBLK_PROVIDER" --encryption-cipher aes-xts-plain64 \
        --encryption-key-size 256 --encryption-control-location front-end \
        --property volume_backend_name="$SEALBLK_VOLUME_BACKEND" "$SEALBLK_VOLUME_TYPE"
}

function stop_sealblk {
    sudo systemctl stop "$_sealblk_unit" || true
    # Guests of a DevStack that is taken down are gone: so may be their daemons.
    sudo systemctl stop sealblk.slice || true
}

function cleanup_sealblk {
    sudo rm -f "/etc/systemd/system/$_sealblk_unit" /etc/systemd/system/sealblk.slice \
        /etc/sysusers.d/sealblk.conf /etc/tmpfiles.d/sealblk.conf \
        /usr/local/bin/sealblkd /usr/local/bin/sealblk-agent /usr/local/bin/sealblk \
        /etc/apparmor.d/abstractions/libvirt-qemu.d/sealblk /etc/sealblk/agent.toml
    rm -f "$NOVA_DIR/nova/virt/sealblk"
    echo "sealblk: /etc/sealblk and /var/lib/sealblk are kept, if anything is left in them"
}

if is_service_enabled sealblk-agent; then
    case "$1 ${2:-}" in
        'stack install') install_sealblk ;;
        'stack post-config')
            configure_sealblk
            # Before nova-compute, which waits for it.
            start_sealblk
            ;;
        'stack extra') create_sealblk_volume_type ;;
        'unstack '*) stop_sealblk ;;
        'clean '*) cleanup_sealblk ;;
    esac
fi
