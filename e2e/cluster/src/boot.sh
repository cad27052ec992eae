# shellcheck shell=bash
# First process of a node: $1 is its directory, $2 its name. It starts what a node
# starts, says `ready`, and ends with its input; everything on the node ends with it.
set -eu
dir=$1 name=$2
# Volumes that see what is mounted later want that.
mount --make-rshared /
hostname "$name"

# The node's cgroups are the roots here.
cgroups=$(grep -E '^[^ ]+ [^ ]+ cgroup2? ' /proc/self/mounts)
umount -R /sys
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /sys/fs/cgroup
while read -r _ at type options _; do
  # Of the options only those that say which hierarchy it is.
  which=$(tr , '\n' <<<"$options" | grep -E "^(name=.*|$(awk 'NR > 1 { print $1 }' /proc/cgroups | paste -sd'|'))\$" | paste -sd, || true)
  case $which in name=*) which=none,$which ;; esac
  mkdir -p "$at"
  mount -t "$type" ${which:+-o "$which"} cgroup "$at"
done <<<"$cgroups"

# What a boot finds empty, and what it finds as it was.
mount -t tmpfs -o mode=0755 run /run
mkdir -p /run/lock
mount --bind "$dir/disk/lib" /var/lib
mount --bind "$dir/disk/log" /var/log
for part in etc opt; do
  mount -t overlay -o "lowerdir=/$part,upperdir=$dir/disk/$part/upper,workdir=$dir/disk/$part/work" "$part" "/$part"
done
# kubelet sets these of the whole machine: it shall find what it wants, and change files.
mkdir /run/knobs
for knob in vm/overcommit_memory:1 vm/panic_on_oom:0 kernel/panic:10 kernel/panic_on_oops:1 \
  kernel/keys/root_maxkeys:1000000 kernel/keys/root_maxbytes:25000000; do
  file=/run/knobs/$(tr / . <<<"${knob%:*}")
  echo "${knob#*:}" >"$file"
  mount --bind "$file" "/proc/sys/${knob%:*}"
done

if [ ! -e "$dir/disk/installed" ]; then
  rm -rf /etc/cni /opt/cni
  mkdir -p /etc/cni/net.d /opt/cni/bin /etc/kubernetes-manifests
  cp "$dir"/net.d/* /etc/cni/net.d/
  cp /usr/lib/cni/{bridge,host-local,loopback,portmap} /opt/cni/bin/
fi
containerd --config "$dir/containerd.toml" </dev/null >>"$dir/../logs/$name-containerd.log" 2>&1 &
for _ in $(seq 600); do
  if ctr version >/dev/null 2>&1; then break; fi
  sleep 0.1
done
if [ ! -e "$dir/disk/installed" ]; then
  for image in "$dir"/../images/*.tar; do
    ctr -n k8s.io images import "$image" >>"$dir/../logs/$name-images.log" 2>&1
  done
  # What manifests/plain names.
  ctr -n k8s.io images tag localhost/e2e/install-cni:first localhost/sluice/install-cni:0.1.0 >/dev/null
  touch "$dir/disk/installed"
fi
kube-proxy --config "$dir/kube-proxy.json" --hostname-override="$name" </dev/null >>"$dir/../logs/$name-kube-proxy.log" 2>&1 &
# Started again when it is killed, as an init system does.
while :; do
  kubelet --config="$dir/kubelet.json" --kubeconfig="$dir/kubeconfig" --hostname-override="$name" --node-ip="$3" \
    --container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock \
    --pod-infra-container-image=localhost/e2e/pause:1 --v=2 </dev/null >>"$dir/../logs/$name-kubelet.log" 2>&1 || true
  sleep 0.2
done 2>>"$dir/../logs/$name-kubelet.log" &
echo ready
read -r _ || true
