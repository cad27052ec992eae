//! Each distribution's own files.

use super::*;
use std::fs;

struct Host(tempfile::TempDir);

impl Host {
    fn new(files: &[(&str, &str)]) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            let path = host.at(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        host
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn dirs(self, paths: &[&str]) -> Self {
        for path in paths {
            fs::create_dir_all(self.at(path)).unwrap();
        }
        self
    }

    fn locate(&self) -> Result<(String, String), LocateError> {
        let found = locate(self.0.path(), &Given::default())?;
        assert!(found.net_dir().is_dir() && found.bin_dir().is_dir(), "{found:?}");
        Ok((found.net.display().to_string(), found.bin.display().to_string()))
    }

    #[track_caller]
    fn finds(&self, net: &str, bin: &str) {
        assert_eq!(self.locate().unwrap(), (net.to_owned(), bin.to_owned()));
    }
}

const DEFAULTS: [&str; 2] = ["/etc/cni/net.d", "/opt/cni/bin"];

#[test]
fn containerd_says_where_in_each_version_of_its_file() {
    for (key, bins) in [
        ("cri", "bin_dir = '/b'"),
        ("'io.containerd.grpc.v1.cri'", "bin_dir = \"/b\""),
        ("'io.containerd.cri.v1.runtime'", "bin_dirs = ['/missing', '/b']"),
        ("'io.containerd.cri.v1.runtime'", "bin_dir = ''\nbin_dirs = ['/b']"),
    ] {
        let text = format!("version = 2\n[plugins.{key}.cni]\nconf_dir = '/n'\n{bins}\n");
        let host = Host::new(&[("/etc/containerd/config.toml", &text)]).dirs(&DEFAULTS);
        host.dirs(&["/n", "/b"]).finds("/n", "/b");
    }
    let empty = Host::new(&[("/etc/containerd/config.toml", "version = 3\n")]);
    empty.dirs(&DEFAULTS).finds(DEFAULTS[0], DEFAULTS[1]);
}

#[test]
fn containerd_imports_come_after_their_importer() {
    let cni = |key: &str, value: &str| {
        format!("[plugins.'io.containerd.grpc.v1.cri'.cni]\n{key} = '{value}'\n")
    };
    let main = format!(
        "imports = ['conf.d/*.toml', '/abs/one.toml', '/not/there.toml']\n{}",
        cni("conf_dir", "/main")
    );
    let host = Host::new(&[
        ("/etc/containerd/config.toml", &main),
        ("/etc/containerd/conf.d/20-b.toml", &cni("conf_dir", "/n")),
        ("/etc/containerd/conf.d/10-a.toml", &cni("conf_dir", "/a")),
        ("/etc/containerd/conf.d/30-c.toml.bak", &cni("conf_dir", "/c")),
        (
            "/abs/one.toml",
            &format!("imports = ['/etc/containerd/config.toml']\n{}", cni("bin_dir", "/b")),
        ),
    ]);
    host.dirs(&["/n", "/b", "/main", "/a", "/c"]).finds("/n", "/b");
}

#[test]
fn crio_says_where_in_drop_ins_of_any_extension() {
    let host = Host::new(&[
        ("/etc/crio/crio.conf", "[crio.network]\nnetwork_dir = '/x'\nplugin_dirs = ['/y']\n"),
        (
            "/etc/crio/crio.conf.d/00-default",
            "[crio.network]\nnetwork_dir = '/etc/kubernetes/cni/net.d/'\nplugin_dirs = ['/var/lib/cni/bin', '/usr/libexec/cni']\n",
        ),
    ]);
    let host = host.dirs(&[
        "/x",
        "/y",
        "/etc/kubernetes/cni/net.d",
        "/var/lib/cni/bin",
        "/usr/libexec/cni",
    ]);
    host.finds("/etc/kubernetes/cni/net.d/", "/var/lib/cni/bin");
}

#[test]
fn distributions() {
    let cri = |net: &str, bin: &str| {
        format!(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"{bin}\"\n  conf_dir = \"{net}\"\n"
        )
    };
    let k3s = ("/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni");
    let host =
        Host::new(&[("/var/lib/rancher/k3s/agent/etc/containerd/config.toml", &cri(k3s.0, k3s.1))]);
    host.dirs(&DEFAULTS).dirs(&[k3s.0, k3s.1]).finds(k3s.0, k3s.1);

    let host =
        Host::new(&[("/var/lib/rancher/rke2/agent/etc/containerd/config.toml", "version = 3\n")]);
    host.dirs(&DEFAULTS).finds(DEFAULTS[0], DEFAULTS[1]);

    let text = cri("${SNAP_DATA}/args/cni-network", "${SNAP_DATA}/opt/cni/bin");
    let host = Host::new(&[("/var/snap/microk8s/current/args/containerd.toml", &text)]);
    let snap =
        ["/var/snap/microk8s/current/args/cni-network", "/var/snap/microk8s/current/opt/cni/bin"];
    host.dirs(&DEFAULTS).dirs(&snap).finds(snap[0], snap[1]);

    let gke = Host::new(&[(
        "/etc/containerd/config.toml",
        &cri("/etc/cni/net.d", "/home/kubernetes/bin"),
    )]);
    gke.dirs(&DEFAULTS)
        .dirs(&["/home/kubernetes/bin"])
        .finds("/etc/cni/net.d", "/home/kubernetes/bin");

    let minikube =
        Host::new(&[("/etc/containerd/config.toml", &cri("/etc/cni/net.mk", "/opt/cni/bin"))]);
    minikube.dirs(&DEFAULTS).dirs(&["/etc/cni/net.mk"]).finds("/etc/cni/net.mk", "/opt/cni/bin");
}

#[test]
fn well_known_places_without_a_configuration() {
    let gke =
        Host::new(&[("/home/kubernetes/bin/bridge", ""), ("/etc/cni/net.d/10-a.conflist", "")]);
    gke.dirs(&DEFAULTS).finds("/etc/cni/net.d", "/home/kubernetes/bin");
    let openshift = Host::new(&[
        ("/var/lib/cni/bin/multus", ""),
        ("/etc/kubernetes/cni/net.d/00-multus.conf", ""),
    ]);
    openshift.dirs(&DEFAULTS).finds("/etc/kubernetes/cni/net.d", "/var/lib/cni/bin");
    let k3s = Host::new(&[
        ("/var/lib/rancher/k3s/data/abc/bin/bridge", ""),
        ("/var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist", ""),
    ]);
    std::os::unix::fs::symlink(
        "/var/lib/rancher/k3s/data/abc",
        k3s.at("/var/lib/rancher/k3s/data/current"),
    )
    .unwrap();
    k3s.finds("/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/current/bin");
    Host::new(&[]).dirs(&DEFAULTS).finds(DEFAULTS[0], DEFAULTS[1]);
}

#[test]
fn the_runtime_that_runs_is_the_one() {
    let crio = ("/etc/crio/crio.conf", "[crio.network]\nnetwork_dir='/c'\nplugin_dirs=['/cb']\n");
    let containerd =
        ("/etc/containerd/config.toml", "[plugins.cri.cni]\nconf_dir='/d'\nbin_dir='/db'\n");
    let both = || Host::new(&[crio, containerd]).dirs(&["/c", "/cb", "/d", "/db"]);
    both().finds("/c", "/cb");
    let host = both();
    fs::create_dir_all(host.at("/run/containerd")).unwrap();
    fs::write(host.at("/run/containerd/containerd.sock"), "").unwrap();
    host.finds("/d", "/db");
}

#[test]
fn says_what_to_set_when_nothing_is_found() {
    let error = Host::new(&[]).locate().unwrap_err().to_string();
    assert!(
        error.contains("cniConfDir") && error.contains("/etc/containerd/config.toml"),
        "{error}"
    );
    let host = Host::new(&[("/etc/containerd/config.toml", "not toml")]).dirs(&["/etc/cni/net.d"]);
    let error = host.locate().unwrap_err().to_string();
    assert!(error.contains("cniBinDir") && error.contains("not valid TOML"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    // What is given is taken, there or not.
    let given = Given { bin: Some("/mine".into()), net: None };
    let found = locate(host.0.path(), &given).unwrap();
    assert_eq!(
        (found.net.as_path(), found.bin.as_path()),
        (Path::new("/etc/cni/net.d"), Path::new("/mine"))
    );
    let given = Given { bin: Some("/b".into()), net: Some("/n".into()) };
    assert_eq!(locate(Path::new("/nowhere"), &given).unwrap().net_dir(), Path::new("/nowhere/n"));
}

#[test]
fn links_of_the_host_lead_into_the_host() {
    let host = Host::new(&[("/run/x/file", "")]);
    fs::create_dir_all(host.at("/var")).unwrap();
    std::os::unix::fs::symlink("/run", host.at("/var/run")).unwrap();
    std::os::unix::fs::symlink("../../../run/x", host.at("/var/up")).unwrap();
    std::os::unix::fs::symlink("loop", host.at("/var/loop")).unwrap();
    let root = Root::new(host.0.path());
    assert_eq!(root.resolve(Path::new("/var/run/x/file")), host.at("/run/x/file"));
    assert_eq!(root.resolve(Path::new("/var/up/file")), host.at("/run/x/file"));
    assert_eq!(root.resolve(Path::new("/../../etc")), host.at("/etc"));
    root.resolve(Path::new("/var/loop/x"));
}
