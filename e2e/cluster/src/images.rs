//! The images that nodes have: the sandboxes', one of busybox, one of Envoy with the
//! suite's `istio-validation`, and ours in two versions. Nothing is pulled.

use crate::packages::Packages;
use anyhow::{Context, Result};
use e2e_node::containerd::image;
use e2e_node::lab::Scratch;
use e2e_node::process::Program;
use e2e_node::programs::{Programs, own_dir, workspace};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What applications run.
pub const APP: &str = "localhost/e2e/app:1";
/// What the injector adds runs.
pub const PROXY: &str = "localhost/e2e/proxy:1";
/// Where ours are, as the chart's values name it.
pub const HUB: &str = "localhost/e2e";
/// The version that is installed.
pub const FIRST: &str = "first";
/// The version that it is upgraded to: other bytes.
pub const SECOND: &str = "second";

/// Links to busybox that pods use.
const APPLETS: [&str; 12] =
    ["sh", "sleep", "wget", "nc", "id", "cat", "ls", "httpd", "env", "echo", "true", "timeout"];
/// Says who asks: the proxy's address, or the client's own.
const PEER: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' \"$REMOTE_ADDR\"\n";

/// Writes all of them to `images` of the run's directory, which nodes import at their
/// first boot.
///
/// # Errors
/// When one cannot be made.
pub fn build(scratch: &Arc<Scratch>, packages: &Packages, programs: &Programs) -> Result<()> {
    let images = scratch.dir("images")?;
    let busybox = packages.runtimes.busybox();
    let pause = image::build(&scratch.dir("image-pause")?, &busybox)?;
    std::fs::rename(pause, images.join("pause.tar"))?;
    let app = app_image(&scratch.dir("image-app")?, &busybox)?;
    std::fs::rename(app, images.join("app.tar"))?;
    let proxy = proxy_image(&scratch.dir("image-proxy")?, &packages.envoy)?;
    std::fs::rename(proxy, images.join("proxy.tar"))?;
    std::thread::scope(|scope| {
        let build = |tag| scope.spawn(move || own_image(scratch, programs, tag));
        let both = [build(FIRST), build(SECOND)];
        both.into_iter().try_for_each(|one| one.join().ok().context("a thread panicked")?)
    })
}

/// Ours, by the script that makes what is published. A debug build is not static, and
/// too large with its symbols.
fn own_image(scratch: &Arc<Scratch>, programs: &Programs, tag: &str) -> Result<()> {
    let bin = scratch.dir(&format!("image-{tag}"))?;
    for program in [&programs.sluice, &programs.plugin] {
        let name = program.file_name().context("a program without a name")?;
        let to = bin.join(name);
        // What follows an ELF file's end is nobody's, and makes it another version.
        let script = "strip -o \"$2\" \"$1\" && printf %s \"$3\" >>\"$2\"";
        let strip = Program::new("sh").args(["-c", script, "strip"]).arg(program).arg(&to);
        strip.arg(tag).check().context("strip, of the package binutils")?;
    }
    Program::new(workspace().join("scripts/image"))
        .arg("--bin-dir")
        .arg(&bin)
        .args(["--with-libraries", "--name"])
        .arg(format!("{HUB}/install-cni:{tag}"))
        .arg("--out")
        .arg(scratch.path().join(format!("images/{tag}.tar")))
        .timeout(Duration::from_secs(120))
        .check()?;
    Ok(())
}

fn app_image(dir: &Path, busybox: &Path) -> Result<PathBuf> {
    let root = skeleton(dir)?;
    put(busybox, &root, "bin/busybox")?;
    for name in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    std::fs::create_dir_all(root.join("www/cgi-bin"))?;
    std::fs::write(root.join("www/index.html"), "here\n")?;
    let peer = root.join("www/cgi-bin/peer");
    std::fs::write(&peer, PEER)?;
    Program::new("chmod").arg("0755").arg(&peer).check()?;
    pack(dir, APP)
}

fn proxy_image(dir: &Path, envoy: &Path) -> Result<PathBuf> {
    let root = skeleton(dir)?;
    let validation = own_dir()?.join("validation");
    put(envoy, &root, "bin/envoy")?;
    put(&validation, &root, "bin/validation")?;
    for library in libraries(&[envoy, &validation])? {
        put(Path::new(&library), &root, library.trim_start_matches('/'))?;
    }
    pack(dir, PROXY)
}

fn skeleton(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    for sub in ["bin", "proc", "sys", "dev", "etc", "run", "tmp"] {
        std::fs::create_dir_all(root.join(sub))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(root)
}

fn put(from: &Path, root: &Path, to: &str) -> Result<()> {
    let to = root.join(to);
    std::fs::create_dir_all(to.parent().unwrap_or(root))?;
    std::fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

fn pack(dir: &Path, name: &str) -> Result<PathBuf> {
    let config = json!({"Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000000"]});
    let image = image::pack(dir, name, &config)?;
    std::fs::remove_dir_all(dir.join("root"))?;
    Ok(image)
}

/// The shared libraries and the loader that programs of this machine want.
fn libraries(programs: &[&Path]) -> Result<BTreeSet<String>> {
    let said = Program::new("ldd").args(programs.iter().copied()).check()?;
    let words = said.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with('/') && !word.ends_with(':'))
    });
    Ok(words.map(str::to_owned).collect())
}
