//! Orders from other processes: a socket that takes one JSON object a line.

use super::{Fault, Rule, Server, WatchList};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// An order. Unknown words are refused.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Order {
    /// Make an object be so.
    Put(Value),
    /// Remove one: resource, namespace, name.
    Remove(String, String, String),
    /// Generate: node, pods, namespaces.
    Fill(String, usize, usize),
    /// A fault.
    Fail(Failure),
    /// No faults any more.
    Heal,
    /// End all watches.
    DropWatches,
    /// Forget history.
    Expire,
    /// Stop listening.
    Down,
    /// Listen again.
    Up,
    /// Serve, refuse or ignore streamed lists.
    WatchList(String),
    /// Requests by verb and resource.
    Counts,
    /// Every request.
    Asked,
    /// Count from zero.
    Forget,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Failure {
    /// `status`, `too_many`, `slow`, `hang`, `close`, `cut`, `garbage`, `page`.
    fault: String,
    /// Status, seconds, milliseconds or bytes.
    #[serde(default)]
    value: u64,
    verb: Option<String>,
    resource: Option<String>,
    name: Option<String>,
    times: Option<usize>,
}

impl Failure {
    fn rule(self) -> Result<Rule> {
        let fault = match self.fault.as_str() {
            "status" => Fault::Status(u16::try_from(self.value)?),
            "too_many" => Fault::TooMany(self.value),
            "slow" => Fault::Slow(Duration::from_millis(self.value)),
            "late" => Fault::Late(Duration::from_millis(self.value)),
            "hang" => Fault::Hang,
            "close" => Fault::Close,
            "cut" => Fault::Cut(usize::try_from(self.value)?),
            "garbage" => Fault::Garbage,
            "page" => Fault::Page,
            other => anyhow::bail!("no fault is called {other:?}"),
        };
        let Self { verb, resource, name, times, .. } = self;
        Ok(Rule { fault, verb, resource, name, times })
    }
}

/// Takes orders until the process ends.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(server: &Server, path: &Path) -> Result<()> {
    // Left by an earlier one.
    std::fs::remove_file(path).ok();
    let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    for stream in listener.incoming() {
        // A caller that goes away has had its answer, or did not want it.
        converse(server, stream?).ok();
    }
    Ok(())
}

fn converse(server: &Server, mut stream: UnixStream) -> Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        let answer =
            match serde_json::from_str(&line?).map_err(Into::into).and_then(|o| obey(server, o)) {
                Ok(answer) => json!({ "ok": answer }),
                Err(error) => json!({ "error": format!("{error:#}") }),
            };
        writeln!(stream, "{answer}")?;
    }
    Ok(())
}

fn obey(server: &Server, order: Order) -> Result<Value> {
    match order {
        Order::Put(object) => server.put(object)?,
        Order::Remove(resource, namespace, name) => server.remove(&resource, &namespace, &name),
        Order::Fill(node, pods, namespaces) => server.fill(&node, pods, namespaces)?,
        Order::Fail(failure) => server.fail(failure.rule()?),
        Order::Heal => server.heal(),
        Order::DropWatches => server.drop_watches(),
        Order::Expire => server.expire(),
        Order::Down => server.down()?,
        Order::Up => server.up()?,
        Order::WatchList(how) => {
            let how = match how.as_str() {
                "served" => WatchList::Served,
                "refused" => WatchList::Refused,
                "ignored" => WatchList::Ignored,
                other => anyhow::bail!("{other:?} is neither served, refused nor ignored"),
            };
            server.set(|options| options.watch_list = how);
        }
        Order::Counts => return Ok(json!(server.counts())),
        Order::Asked => return Ok(json!(server.asked())),
        Order::Forget => server.forget(),
    }
    Ok(Value::Null)
}
