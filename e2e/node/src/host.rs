//! The directories of a node that an installer works on: CNI configuration, plugins,
//! and what an image brings. A container runtime reads them as it does.

use crate::lab::Scratch;
use crate::programs::Programs;
use crate::runtime::Conflist;
use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::io::Write;
use std::path::{Path, PathBuf};

/// File of the network that is there before us.
pub const PRIMARY: &str = "10-pods.conflist";

/// The plugin's program.
pub const PLUGIN: &str = "istio-cni";

/// The directories.
#[derive(Debug)]
pub struct Host {
    /// The runtime's configurations.
    pub net: PathBuf,
    /// The runtime's plugins.
    pub bin: PathBuf,
    /// The image's plugins, which the installer copies.
    pub image: PathBuf,
}

impl Host {
    /// Makes them, the plugin under test in the image.
    ///
    /// # Errors
    /// When that fails.
    pub fn create(scratch: &Scratch, name: &str, programs: &Programs) -> Result<Self> {
        let host = Self {
            net: scratch.dir(&format!("{name}-net.d"))?,
            bin: scratch.dir(&format!("{name}-bin"))?,
            image: scratch.dir(&format!("{name}-image"))?,
        };
        std::fs::copy(&programs.plugin, host.image.join(PLUGIN)).context("copy the plugin")?;
        Ok(host)
    }

    /// Writes the primary's configuration as a careful product does.
    ///
    /// # Errors
    /// When that fails.
    pub fn write_primary(&self, text: &str) -> Result<()> {
        let part = self.net.join(format!(".{PRIMARY}.part"));
        std::fs::write(&part, text)
            .and_then(|()| std::fs::rename(&part, self.net.join(PRIMARY)))?;
        Ok(())
    }

    /// What a runtime loads: the first list in order of names.
    ///
    /// # Errors
    /// When there is none, or it is broken: then no pod starts.
    pub fn load(&self) -> Result<Conflist> {
        let entries = std::fs::read_dir(&self.net)?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let first =
            names.filter(|name| !name.starts_with('.') && name.ends_with(".conflist")).min();
        let path = self.net.join(first.context("no CNI configuration")?);
        let text = std::fs::read_to_string(&path)?;
        Conflist::parse(&text).with_context(|| format!("load {}", path.display()))
    }

    /// The next image's plugin: the same program in other bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn upgrade(&self, number: usize) -> Result<()> {
        let (path, part) = (self.image.join(PLUGIN), self.image.join(".sluice-next"));
        std::fs::copy(&path, &part)?;
        let mut file = std::fs::File::options().append(true).open(&part)?;
        // Behind the end of what an ELF loader reads.
        write!(file, "release {number}")?;
        drop(file);
        std::fs::rename(&part, &path)?;
        Ok(())
    }

    /// The plugin that runtimes execute is the image's.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn is_current(&self) -> Result<bool> {
        let read = |dir: &Path| std::fs::read(dir.join(PLUGIN));
        Ok(read(&self.bin)? == read(&self.image)?)
    }
}

/// A small file system on a directory, which can be filled; gone when dropped.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts it, empty, with a size as tmpfs takes it.
    ///
    /// # Errors
    /// When this process may not.
    pub fn mount(path: &Path, size: &str) -> Result<Self> {
        let options = format!("size={size},mode=0700");
        std::fs::create_dir_all(path)?;
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("mount a tmpfs on {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// When it does not become full.
    pub fn fill(&self) -> Result<()> {
        let mut file = std::fs::File::options().create(true).append(true).open(self.filler())?;
        for size in [1 << 20, 4096, 1] {
            let bytes = vec![0; size];
            while file.write_all(&bytes).is_ok() {}
        }
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// When the file that takes it cannot be removed.
    pub fn clear(&self) -> Result<()> {
        match std::fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn filler(&self) -> PathBuf {
        // Neither a configuration nor a record.
        self.path.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).ok();
    }
}
