# First process of a containerd's namespaces: mounts and processes end with it, and
# it ends when its stdin does. $1 is a directory with config.toml, bin/ and net.d/.
set -eu
for dir in /run /var/lib; do
  mount -t tmpfs -o mode=0755 node "$dir"
done
for dir in etc opt; do
  mkdir -p "/run/node/$dir/upper" "/run/node/$dir/work"
  mount -t overlay -o "lowerdir=/$dir,upperdir=/run/node/$dir/upper,workdir=/run/node/$dir/work" node "/$dir"
done
# The places that a node's runtime looks at by itself.
mkdir -p /etc/cni/net.d /opt/cni/bin
mount --bind "$1/net.d" /etc/cni/net.d
mount --bind "$1/bin" /opt/cni/bin
containerd --config "$1/config.toml" >>"$1/log" 2>&1 &
echo ready
read -r _ || true
