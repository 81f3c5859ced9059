//! The files of one epoch: the CAR file with its closing nodes, the index, the root's CID.

use std::fs;
use std::path::{Path, PathBuf};

use crate::car::{CarWriter, Cid, cid_text};
use crate::cbor::Node;
use crate::{SLOTS_PER_EPOCH, SimError};

/// A Subset links to the blocks of so many slots: an epoch has several, so that no reader counts on one.
const SLOTS_OF_A_SUBSET: u64 = 24_000;

/// An epoch being written.
pub(crate) struct Epoch {
    pub(crate) number: u64,
    pub(crate) car: CarWriter,
    stem: PathBuf,
    ranges: Vec<u8>,
    blocks: Vec<(u64, Cid)>,
}

impl Epoch {
    pub(crate) fn create(folder: &Path, number: u64) -> Result<Self, SimError> {
        let folder = folder.join(number.to_string());
        fs::create_dir_all(&folder)?;
        let stem = folder.join(format!("epoch-{number}"));
        let car = CarWriter::create(&stem.with_extension("car"))?;
        Ok(Self {
            number,
            car,
            stem,
            ranges: vec![0; SLOTS_PER_EPOCH as usize * 12],
            blocks: Vec::new(),
        })
    }

    /// Lists the block of `slot`, whose sections began at `offset` and end here with the Block node `cid`.
    pub(crate) fn end_block(&mut self, slot: u64, offset: u64, cid: Cid) {
        let length = (self.car.offset - offset) as u32;
        let at = (slot % SLOTS_PER_EPOCH) as usize * 12;
        self.ranges[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        self.ranges[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
        self.blocks.push((slot, cid));
    }

    /// Writes the closing nodes and the files beside the CAR file; returns that one's bytes.
    pub(crate) fn finish(mut self) -> Result<u64, SimError> {
        let mut subsets = Vec::new();
        let blocks = std::mem::take(&mut self.blocks);
        for group in blocks.chunk_by(|a, b| a.0 / SLOTS_OF_A_SUBSET == b.0 / SLOTS_OF_A_SUBSET) {
            let mut subset = Node::array(4);
            subset.unsigned(3);
            subset.unsigned(group[0].0);
            subset.unsigned(group[group.len() - 1].0);
            subset.roomy = true; // this list's length comes longer than it needs to be in real files, too
            subset.links(group.iter().map(|block| &block.1));
            subsets.push(self.car.section(&subset)?);
        }
        let mut epoch = Node::array(3);
        epoch.unsigned(4);
        epoch.unsigned(self.number);
        epoch.links(&subsets);
        let root = self.car.section(&epoch)?;
        let bytes = self.car.offset;
        self.car.finish(&root)?;
        fs::write(
            self.stem.with_extension("cid"),
            format!("{}\n", cid_text(&root)),
        )?;
        let name = format!("epoch-{}-slot-ranges.raw", self.number);
        fs::write(self.stem.with_file_name(name), &self.ranges)?;
        Ok(bytes)
    }
}
