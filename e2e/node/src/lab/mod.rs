//! Namespaces and the links between them. All of it goes with its values, on
//! panic too; what a killed run left behind is swept by the next.

pub mod namespace;
pub mod neighbourhood;
pub mod node;
pub mod scratch;

pub use namespace::Namespace;
pub use scratch::Scratch;
