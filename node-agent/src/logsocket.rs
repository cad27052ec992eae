//! The socket that a stock istio-cni plugin sends its log lines to while it is still
//! on the host (reference 1.5). Lines are written again as the agent's own. Ours has
//! no use for it. Unlike Istio's it is root's alone.

use crate::log::PLUGIN;
use crate::responder::{self, Page};
use crate::server::{Socket, SocketError};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// Its name in the run directory. Istio's.
pub(crate) const NAME: &str = "log.sock";

/// Most bytes that one invocation of a plugin may have to say.
const MAX_BODY: usize = 1 << 20;

/// Longest line that is written.
const MAX_LINE: usize = 8 << 10;

/// Invocations that are listened to at once.
const MAX_CONNECTIONS: usize = 32;

/// How often it is looked whether plugins can find the socket.
const LOOK: Duration = Duration::from_secs(1);

/// The bound socket; its file goes with it.
#[derive(Debug)]
pub(crate) struct LogSocket {
    socket: Socket,
}

impl LogSocket {
    /// Listens in the run directory.
    ///
    /// # Errors
    ///
    /// See [`SocketError`].
    pub(crate) fn bind(run_dir: &Path) -> Result<Self, SocketError> {
        Ok(Self { socket: Socket::bind(run_dir, NAME)? })
    }

    /// Takes lines until it is dropped; tells the level of each that was written.
    pub(crate) async fn run(mut self, written: impl Fn(tracing::Level) + Send + Sync + 'static) {
        let written = Arc::new(written);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                _ = looks.tick() => {
                    self.socket.keep();
                    continue;
                }
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    let written = Arc::clone(&written);
                    tokio::spawn(async move {
                        take(stream, &*written).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::error!(reason = %error, "cannot accept on the log socket");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn take(mut stream: UnixStream, written: &(impl Fn(tracing::Level) + Send + Sync)) {
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
        tracing::warn!("a caller that is not root connected to the log socket and was turned away");
        return;
    }
    let page = match responder::read(&mut stream, MAX_BODY).await {
        Ok(None) => return,
        Err(refusal) => refusal,
        Ok(Some(request)) if request.path != "/log" => Page::text(404, "want POST /log"),
        Ok(Some(request)) => {
            match serde_json::from_slice::<Vec<String>>(&request.body) {
                Ok(lines) => {
                    lines.iter().filter_map(|line| Line::parse(line)).for_each(|line| {
                        line.write();
                        written(line.level);
                    });
                }
                Err(error) => {
                    tracing::debug!(reason = %error, "what came on the log socket is no list of lines")
                }
            }
            // As in Istio whatever was sent: a plugin can do nothing about it.
            Page { status: 200, kind: "text/plain; charset=utf-8", body: String::new() }
        }
    };
    responder::write(&mut stream, &page, true).await;
}

/// A plugin's line.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    level: tracing::Level,
    time: String,
    msg: String,
    labels: String,
}

impl Line {
    /// `None` for what is no line: it has no level, no message or no time.
    fn parse(text: &str) -> Option<Self> {
        let mut fields: Map<String, Value> = serde_json::from_str(text).ok()?;
        let mut take = |key| match fields.remove(key) {
            Some(Value::String(text)) => Some(clean(&text)),
            _ => None,
        };
        let (level, time, msg) = (take("level")?, take("time")?, take("msg")?);
        let level = match level.as_str() {
            "debug" => tracing::Level::DEBUG,
            "info" => tracing::Level::INFO,
            "warn" => tracing::Level::WARN,
            "error" | "fatal" => tracing::Level::ERROR,
            _ => return None,
        };
        fields.remove("scope");
        let labels = if fields.is_empty() {
            String::new()
        } else {
            clean(&Value::Object(fields).to_string())
        };
        Some(Self { level, time, msg, labels })
    }

    fn write(&self) {
        let Self { level, time, msg, labels } = self;
        let (labels, scope) = (Some(labels.as_str()).filter(|labels| !labels.is_empty()), PLUGIN);
        // A level is part of a call site.
        match *level {
            tracing::Level::ERROR => tracing::error!(target: PLUGIN, scope, time, labels, "{msg}"),
            tracing::Level::WARN => tracing::warn!(target: PLUGIN, scope, time, labels, "{msg}"),
            tracing::Level::INFO => tracing::info!(target: PLUGIN, scope, time, labels, "{msg}"),
            _ => tracing::debug!(target: PLUGIN, scope, time, labels, "{msg}"),
        }
    }
}

/// One line that cannot look like another's.
fn clean(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let mut end = text.len().min(MAX_LINE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].trim_end().chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_istios_lines_and_drops_others() {
        let text = "{\"level\":\"info\",\"time\":\"2026-01-02T03:04:05.000006Z\",\"scope\":\"cni-plugin\",\"msg\":\"a\\nb\",\"pod\":\"p\",\"n\":1}\n";
        let line = Line::parse(text).unwrap();
        assert_eq!(line.level, tracing::Level::INFO);
        assert_eq!((line.msg.as_str(), line.labels.as_str()), ("a b", "{\"n\":1,\"pod\":\"p\"}"));
        for bad in [
            "",
            "[]",
            "x",
            "{\"level\":\"info\",\"msg\":\"m\"}",
            "{\"level\":\"loud\",\"time\":\"t\",\"msg\":\"m\"}",
            "{\"level\":1,\"time\":\"t\",\"msg\":\"m\"}",
        ] {
            assert_eq!(Line::parse(bad), None, "{bad}");
        }
        assert_eq!(clean(&"ä".repeat(MAX_LINE)).len(), MAX_LINE);
    }
}
