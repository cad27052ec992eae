//! A proxy or an application in a pod of the lab. Its configuration is the first
//! line of stdin; it ends when stdin is closed.

use anyhow::Result;
use e2e_node::stand_in::StandIn;
use std::io::Write;

fn main() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let config: StandIn = serde_json::from_str(&line)?;
    config.serve(|| {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "ready")?;
        Ok(stdout.flush()?)
    })
}
