# What makes Debian trixie a base of ours. One script for both ways to it: `install` runs in a
# Dockerfile on a registry's image, `finish` as mmdebstrap's last hook, where the packages are there already.
set -eu
export DEBIAN_FRONTEND=noninteractive
export SOURCE_DATE_EPOCH=1786579200  # or Debian's py3compile stamps bytecode with the sources' times

if [ "$1" = install ]; then
    if [ -f /run/secrets/machine ]; then . /run/secrets/machine; fi
    if [ -f /run/secrets/ca ]; then echo 'Acquire::https::CAInfo "/run/secrets/ca";' > /etc/apt/apt.conf.d/99ca; fi
    cat > /etc/dpkg/dpkg.cfg.d/imgbuild <<'EOF'
path-exclude=/usr/lib/python3*/config-*/*.a
path-exclude=/usr/share/man/*
path-exclude=/usr/bin/*-lto-dump-*
path-exclude=/usr/lib/*/libLLVM*
path-exclude=/usr/lib/*/libgallium*
path-exclude=/usr/lib/*/libz3*
path-exclude=/usr/lib/*/dri/*
EOF
    apt-get update
    apt-get install --yes --no-install-recommends \
        ca-certificates \
        gcc \
        libc6-dev \
        libgl1 \
        libglib2.0-0t64 \
        libgomp1 \
        libx11-6 \
        libxcb1 \
        libxext6 \
        python3 \
        python3-dev \
        python3-venv \
        tini

    rm -f /etc/apt/apt.conf.d/99ca
else
    rm -f /etc/hostname /etc/resolv.conf  # this machine's; an engine mounts its own
    # Whatever mirror built this, the image names Debian's own, as apt's documentation spells it.
    examples=/usr/share/doc/apt/examples
    if [ -f $examples/debian.sources ]; then
        rm -f /etc/apt/sources.list
        sed -e '/^#/d' -e 's/^Components:.*/Components: main/' $examples/debian.sources > /etc/apt/sources.list.d/debian.sources
    elif [ -f $examples/sources.list ]; then
        grep '^deb ' $examples/sources.list | sed 's/ main .*/ main/' > /etc/apt/sources.list
    fi
fi

# A name for the user that the image runs as; any other UID works as well.
echo 'comfy:x:1000:1000:ComfyUI:/data:/usr/sbin/nologin' >> /etc/passwd
echo 'comfy:x:1000:' >> /etc/group
install -d -m 1777 /data /cache

install -d /usr/share/imgbuild
dpkg-query --show --showformat '${Package} ${Version} ${Architecture}\n' | sort > /usr/share/imgbuild/debian-packages.txt

# Caches, logs and machine identities differ from one build to the next.
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
    /var/log/apt /var/log/*.log /var/lib/dpkg/*-old /etc/machine-id /var/lib/dbus/machine-id
if [ "$1" = install ]; then
    # Not what the engine mounts: resolv.conf, hosts, hostname.
    find /cache /data /etc /opt /usr /var -xdev -newermt '@1786579200' -not -path '/etc/resolv.conf' \
        -not -path '/etc/host*' -exec touch --no-dereference --date '@1786579200' {} +
fi
