//! Owns the content of a data frame: a block of a file, compressed where that saves time, and the choice of how.
//!
//! What is compressed before the cipher is neither encrypted nor sent nor decrypted, and lz4 costs a fraction of any of
//! the three; so it is where `auto` begins. Whether a stronger method pays depends on the link and on both ends'
//! processors, which nobody can ask for; so it is tried, and what brings more bytes of files over in a second is kept.

use super::protocol::{BLOCK, Compression, Fields, Kind, bad, write_frame};
use std::io::{Result, Write};
use std::time::{Duration, Instant};

/// One way to compress. The order is that of their strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Plain,
    Lz4,
    Zstd(i32),
}

/// What `auto` climbs, from the first rung.
const LADDER: [Coding; 4] = [Coding::Lz4, Coding::Zstd(1), Coding::Zstd(3), Coding::Zstd(9)];

/// A rung is judged over so much time, and so many bytes on the wire: what stands in the buffers on the way must not
/// decide.
const TRIAL: Duration = Duration::from_millis(700);
const TRIAL_BYTES: u64 = 4 << 20;
/// A judgement holds for so long: other files compress in another way.
const HOLDS: Duration = Duration::from_secs(20);
/// A stronger method has to bring so much more.
const GAIN: f64 = 1.05;

/// Where `auto` stands.
struct Climb {
    rung: usize,
    /// What the rung below brought, while this one is on trial.
    below: Option<f64>,
    begin: Instant,
    plain: u64,
    wire: u64,
    /// Until when nothing is tried.
    settled_until: Option<Instant>,
}

impl Climb {
    fn new() -> Climb {
        Climb { rung: 0, below: None, begin: Instant::now(), plain: 0, wire: 0, settled_until: None }
    }

    fn again(&mut self, now: Instant) {
        (self.begin, self.plain, self.wire) = (now, 0, 0);
    }

    /// Counts a block; at the end of a trial goes up, stays, or goes back.
    fn count(&mut self, plain: usize, wire: usize, now: Instant) {
        if self.settled_until.is_some_and(|until| now < until) {
            return;
        }
        if self.settled_until.take().is_some() {
            // What was right may be too strong by now.
            self.rung = self.rung.saturating_sub(1);
            self.again(now);
        }
        self.plain += plain as u64;
        self.wire += wire as u64;
        let took = now - self.begin;
        if took < TRIAL || self.wire < TRIAL_BYTES {
            return;
        }
        let rate = self.plain as f64 / took.as_secs_f64();
        let pays = self.below.is_none_or(|below| rate > below * GAIN);
        if pays && self.rung + 1 < LADDER.len() {
            self.below = Some(rate);
            self.rung += 1;
        } else {
            // At the top, or one too far up.
            self.rung -= usize::from(!pays);
            self.below = None;
            self.settled_until = Some(now + HOLDS);
        }
        self.again(now);
    }

    fn coding(&self) -> Coding {
        LADDER[self.rung]
    }
}

/// Writes the data frames of one stream.
pub struct Encoder {
    wanted: Compression,
    climb: Climb,
    scratch: Vec<u8>,
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
    /// Blocks that did not compress, one after the other: of such only a few are tried.
    stubborn: u32,
}

/// How many blocks have to resist until most are sent as they are, and which of them is tried all the same.
const STUBBORN: u32 = 16;
const TRY_EVERY: u32 = 8;

/// Coding, offset and length of a block.
const HEADER: usize = 13;

impl Encoder {
    /// For a stream.
    pub fn new(wanted: Compression) -> Encoder {
        Encoder { wanted, climb: Climb::new(), scratch: Vec::new(), zstd: None, stubborn: 0 }
    }

    fn coding(&self) -> Coding {
        match self.wanted {
            Compression::None => Coding::Plain,
            Compression::Lz4 => Coding::Lz4,
            Compression::Zstd(level) => Coding::Zstd(level),
            Compression::Auto if self.stubborn > STUBBORN && !self.stubborn.is_multiple_of(TRY_EVERY) => {
                Coding::Plain
            }
            Compression::Auto => self.climb.coding(),
        }
    }

    /// Writes `bytes` (at most [`BLOCK`]), compressed where that saves an eighth.
    pub fn write_block(&mut self, to: &mut impl Write, offset: u64, bytes: &[u8]) -> Result<()> {
        debug_assert!(bytes.len() <= BLOCK);
        let coding = self.coding();
        let packed = self.pack(coding, bytes)?.filter(|packed| *packed < bytes.len() - bytes.len() / 8);
        let tag = match (packed, coding) {
            (None, _) | (_, Coding::Plain) => {
                self.scratch.truncate(HEADER);
                self.scratch.extend_from_slice(bytes);
                self.stubborn = self.stubborn.saturating_add(1);
                0
            }
            (Some(packed), coding) => {
                self.scratch.truncate(HEADER + packed);
                self.stubborn = 0;
                if coding == Coding::Lz4 { 1 } else { 2 }
            }
        };
        self.scratch[0] = tag;
        self.scratch[1..9].copy_from_slice(&offset.to_le_bytes());
        self.scratch[9..HEADER].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        write_frame(to, Kind::Data, &self.scratch)?;
        if self.wanted == Compression::Auto {
            self.climb.count(bytes.len(), self.scratch.len(), Instant::now());
        }
        Ok(())
    }

    /// Compresses into the scratch, behind the room for the header; gives the length where that worked.
    fn pack(&mut self, coding: Coding, bytes: &[u8]) -> Result<Option<usize>> {
        match coding {
            Coding::Plain => {
                self.scratch.resize(HEADER, 0);
                Ok(None)
            }
            Coding::Lz4 => {
                self.scratch.resize(HEADER + lz4_flex::block::get_maximum_output_size(bytes.len()), 0);
                Ok(lz4_flex::block::compress_into(bytes, &mut self.scratch[HEADER..]).ok())
            }
            Coding::Zstd(level) => {
                if self.zstd.as_ref().is_none_or(|(made_for, _)| *made_for != level) {
                    self.zstd = Some((level, zstd::bulk::Compressor::new(level)?));
                }
                let (_, compressor) = self.zstd.as_mut().expect("made above");
                self.scratch.resize(HEADER + zstd::zstd_safe::compress_bound(bytes.len()), 0);
                Ok(compressor.compress_to_buffer(bytes, &mut self.scratch[HEADER..]).ok())
            }
        }
    }
}

/// A block of a file, decompressed.
pub struct Block<'a> {
    /// Where it goes.
    pub offset: u64,
    /// Its bytes, at most [`BLOCK`].
    pub bytes: &'a [u8],
}

/// Reads data frames.
#[derive(Default)]
pub struct Decoder {
    scratch: Vec<u8>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decoder {
    /// Reads the payload of a data frame.
    ///
    /// # Errors
    /// [`InvalidData`](std::io::ErrorKind::InvalidData) for what no source sends.
    pub fn read_block<'a>(&'a mut self, payload: &'a [u8]) -> Result<Block<'a>> {
        let mut fields = Fields(payload);
        let (coding, offset, length) = (fields.take(1)?[0], fields.u64()?, fields.u32()? as usize);
        if length > BLOCK {
            return Err(bad(format!("a block of {length} bytes")));
        }
        let written = match coding {
            0 if fields.0.len() == length => return Ok(Block { offset, bytes: fields.0 }),
            0 => usize::MAX,
            1 => {
                self.scratch.resize(length, 0);
                lz4_flex::block::decompress_into(fields.0, &mut self.scratch).map_err(bad)?
            }
            2 => {
                self.scratch.resize(length, 0);
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(zstd::bulk::Decompressor::new()?),
                };
                zstd.decompress_to_buffer(fields.0, &mut self.scratch[..]).map_err(bad)?
            }
            _ => return Err(bad("a block of unknown coding")),
        };
        if written != length {
            return Err(bad("a block of another length than it says"));
        }
        Ok(Block { offset, bytes: &self.scratch })
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::read_frame;
    use super::*;

    /// Nothing makes this smaller (xorshift).
    fn noise() -> Vec<u8> {
        let mut x = 0x9E37_79B9_7F4A_7C15u64;
        let next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()
        };
        std::iter::repeat_with(next).take(BLOCK / 8).flatten().collect()
    }

    #[test]
    fn blocks_come_back_in_every_coding() {
        use Compression::*;
        for compression in [Auto, None, Lz4, Zstd(1), Zstd(9)] {
            let (mut encoder, mut decoder) = (Encoder::new(compression), Decoder::default());
            for bytes in [vec![7u8; BLOCK], noise(), vec![], vec![1], vec![3; 9000]] {
                let (mut wire, mut payload) = (Vec::new(), Vec::new());
                encoder.write_block(&mut wire, 1 << 40, &bytes).unwrap();
                assert_eq!(read_frame(&mut wire.as_slice(), &mut payload).unwrap(), Some(Kind::Data));
                let block = decoder.read_block(&payload).unwrap();
                assert_eq!((block.offset, block.bytes), (1 << 40, bytes.as_slice()), "{compression:?}");
                let squeezed = bytes.len() > 8000 && bytes[0] == bytes[1] && compression != None;
                assert_eq!(payload.len() < bytes.len() / 4, squeezed, "{compression:?}, {}", bytes.len());
            }
        }
    }

    #[test]
    fn blocks_that_lie_are_refused() {
        let mut decoder = Decoder::default();
        for coding in [0, 1, 2, 3] {
            for length in [5, BLOCK as u32, u32::MAX] {
                let mut wire = vec![coding];
                wire.extend(0u64.to_le_bytes());
                wire.extend(length.to_le_bytes());
                wire.extend(b"four");
                assert!(decoder.read_block(&wire).is_err(), "{coding} {length}");
            }
        }
        // More comes out than it says.
        for compression in [Compression::Lz4, Compression::Zstd(1)] {
            let mut wire = Vec::new();
            Encoder::new(compression).write_block(&mut wire, 0, &[1; BLOCK]).unwrap();
            let payload = &mut wire[5..];
            payload[9..13].copy_from_slice(&100u32.to_le_bytes());
            assert!(decoder.read_block(payload).is_err());
        }
        assert!(decoder.scratch.capacity() <= BLOCK);
    }

    #[test]
    fn what_resists_is_sent_as_it_is_until_it_does_not_resist_any_more() {
        let mut encoder = Encoder::new(Compression::Auto);
        for _ in 0..STUBBORN + 1 {
            encoder.write_block(&mut Vec::new(), 0, &noise()).unwrap();
        }
        assert_eq!(encoder.coding(), Coding::Plain);
        for _ in 0..TRY_EVERY {
            encoder.write_block(&mut Vec::new(), 0, &[7; BLOCK]).unwrap();
        }
        assert_eq!(encoder.coding(), Coding::Lz4);
    }

    /// Plain bytes per second that a link brings with each rung: it ends where it is fastest.
    fn settles_on(rates: [u64; 4]) -> Coding {
        let (mut climb, mut now) = (Climb::new(), Instant::now());
        climb.begin = now;
        while climb.settled_until.is_none() {
            let plain = rates[climb.rung];
            now += Duration::from_secs(1);
            climb.count(plain as usize, TRIAL_BYTES as usize, now);
        }
        climb.coding()
    }

    #[test]
    fn auto_climbs_as_far_as_it_pays() {
        const MB: u64 = 1 << 20;
        assert_eq!(settles_on([900 * MB, 800 * MB, 300 * MB, 90 * MB]), Coding::Lz4);
        assert_eq!(
            settles_on([900 * MB, 910 * MB, 300 * MB, 90 * MB]),
            Coding::Lz4,
            "hardly more is not more"
        );
        assert_eq!(settles_on([230 * MB, 330 * MB, 300 * MB, 90 * MB]), Coding::Zstd(1));
        assert_eq!(settles_on([2 * MB, 3 * MB, 4 * MB, 5 * MB]), Coding::Zstd(9));
    }

    #[test]
    fn it_is_judged_again_after_a_while() {
        let (mut climb, begin) = (Climb::new(), Instant::now());
        climb.begin = begin;
        let second = Duration::from_secs(1);
        climb.count(100, TRIAL_BYTES as usize, begin + second);
        climb.count(50, TRIAL_BYTES as usize, begin + 2 * second);
        assert_eq!((climb.coding(), climb.settled_until.is_some()), (Coding::Lz4, true));
        climb.count(50, TRIAL_BYTES as usize, begin + 2 * second + HOLDS);
        climb.count(50, TRIAL_BYTES as usize, begin + 4 * second + HOLDS);
        assert_eq!(climb.coding(), Coding::Zstd(1));
    }

    #[test]
    fn what_an_operator_writes() {
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(1)));
        assert_eq!("zstd:19".parse(), Ok(Compression::Zstd(19)));
        assert_eq!("auto".parse(), Ok(Compression::Auto));
        for wrong in ["", "zstd:", "zstd:0", "zstd:20", "lz4:1", "gzip"] {
            assert!(wrong.parse::<Compression>().is_err(), "{wrong}");
        }
    }
}
