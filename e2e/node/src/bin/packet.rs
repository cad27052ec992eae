//! Makes the attempts given on stdin and prints what became of each.

fn main() -> anyhow::Result<()> {
    e2e_node::packet::serve(std::io::stdin().lock(), std::io::stdout().lock())
}
