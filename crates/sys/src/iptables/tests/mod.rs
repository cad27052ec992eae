//! On the real kernel, in namespaces made for each test, with both variants.

mod apply;
mod detection;
mod failure;
mod fixture;
mod pods;
