//! A date of the agent's own. CLOCK_REALTIME has no namespace and the machine's is
//! not ours to set; the tests' build of the agent is linked dynamically, so a library
//! stands between it and the kernel.

use e2e_node::lab::Scratch;
use e2e_node::process::Program;
use std::path::PathBuf;

const SOURCE: &str = include_str!("clock.c");

/// A library and what it reads.
pub(crate) struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    pub(crate) fn make(scratch: &Scratch) -> Self {
        let source = scratch.file("clock.c", SOURCE).unwrap();
        let library = scratch.path().join("clock.so");
        let compiler = Program::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]);
        compiler.arg(&library).arg(&source).check().unwrap();
        let clock = Self { library, offset: scratch.path().join("clock-offset") };
        clock.set(0);
        clock
    }

    /// What the agent's environment needs.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", self.library.display().to_string()),
            ("SLUICE_E2E_CLOCK", self.offset.display().to_string()),
        ]
    }

    /// Moves the agent's date away from the machine's by so many seconds, now.
    pub(crate) fn set(&self, seconds: i64) {
        use std::os::unix::fs::FileExt;
        let mut how = std::fs::File::options();
        // It is mapped: it must not shrink.
        let file = how.create(true).truncate(false).write(true).open(&self.offset).unwrap();
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    /// The process has it. A static program would not.
    #[track_caller]
    pub(crate) fn assert_works_in(&self, pid: u32) {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        assert!(
            maps.contains("clock.so"),
            "the agent's clock cannot be moved: it must be linked dynamically, as `cargo build` does"
        );
    }
}
