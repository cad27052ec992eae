//! A fake ztunnel. Its configuration is the first line of stdin; it ends by SIGTERM as
//! ztunnel does, and at once when stdin is closed.

use anyhow::Result;
use e2e_node::ztunnel::{Config, run::run};
use std::io::{Read, Write};

fn main() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let config: Config = serde_json::from_str(&line)?;
    let ready = || {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "ready")?;
        Ok(stdout.flush()?)
    };
    run(config, ready, || {
        // Whatever comes; the end is what counts.
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
    })
}
