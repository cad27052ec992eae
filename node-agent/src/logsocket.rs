//! The socket that a stock istio-cni plugin sends its log lines to while it is still
//! on the host (reference 1.5). Lines are written again as the agent's own. Ours has
//! no use for it. Unlike Istio's it is root's alone.

use crate::log::PLUGIN;
use crate::responder::{self, Page};
use crate::server::{Socket, SocketError};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixStream;

/// Its name in the run directory. Istio's.
pub(crate) const NAME: &str = "log.sock";

/// Most bytes that one invocation of a plugin may have to say.
const MAX_BODY: usize = 1 << 20;

/// Longest line that is written.
const MAX_LINE: usize = 8 << 10;

/// Invocations that are listened to at once.
const MAX_CONNECTIONS: usize = 32;

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
    pub(crate) async fn run(self, written: impl Fn(tracing::Level) + Send + Sync + 'static) {
        let written = Arc::new(written);
        let take = move |stream| take(stream, Arc::clone(&written));
        self.socket.serve("the log socket", MAX_CONNECTIONS, take).await;
    }
}

async fn take(mut stream: UnixStream, written: Arc<impl Fn(tracing::Level)>) {
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
