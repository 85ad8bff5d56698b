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

/// What `auto` goes up and down.
const LADDER: [Coding; 5] = [Coding::Plain, Coding::Lz4, Coding::Zstd(1), Coding::Zstd(3), Coding::Zstd(9)];
/// Where it begins, and what is the weakest for data that compresses.
const FIRST: usize = 1;
/// Where it begins when an answer takes longer than that: the farther, the slower the line, and on one of 10 Mbit/s the
/// first seconds are half of a small copy.
const FAR: [(Duration, usize); 2] = [(Duration::from_millis(40), 3), (Duration::from_millis(5), 2)];

/// A rung is judged over so much time, and so many bytes on the wire: what stands in the buffers on the way must not
/// decide.
const TRIAL: Duration = Duration::from_millis(700);
const TRIAL_BYTES: u64 = 4 << 20;
/// A judgement holds for so long: other files compress in another way.
const HOLDS: Duration = Duration::from_secs(20);
/// A stronger method has to bring so much more; a weaker one may bring so much less.
const GAIN: f64 = 1.05;
/// A stronger method is tried only where at least this share of the time was spent waiting for the line: where it was
/// not, the processors are what there is too little of.
const WAITING: f64 = 0.5;
/// Where it was this share, and few bytes passed, nothing has to be tried: the processors have all the time that there is.
const NOTHING_BUT_WAITING: f64 = 0.9;
/// A weaker one is tried only where compression leaves more than this.
const POOR: f64 = 0.7;

/// Where `auto` stands.
struct Climb {
    rung: usize,
    /// What another rung brought, while this one is on trial: which, and how much.
    before: Option<(usize, f64)>,
    begin: Instant,
    plain: u64,
    wire: u64,
    /// Waiting for the line since then.
    waited: Duration,
    /// Until when nothing is tried.
    settled_until: Option<Instant>,
}

impl Climb {
    fn new(distance: Duration) -> Climb {
        let far = FAR.iter().find(|(farther_than, _)| distance > *farther_than);
        Climb {
            rung: far.map_or(FIRST, |(_, rung)| *rung),
            before: None,
            begin: Instant::now(),
            plain: 0,
            wire: 0,
            waited: Duration::ZERO,
            settled_until: None,
        }
    }

    fn again(&mut self, now: Instant) {
        (self.begin, self.plain, self.wire, self.waited) = (now, 0, 0, Duration::ZERO);
    }

    fn settle(&mut self, rung: usize, now: Instant) {
        (self.rung, self.before, self.settled_until) = (rung, None, Some(now + HOLDS));
    }

    /// Counts a block; at the end of a trial goes up or down, stays, or goes back.
    fn count(&mut self, plain: usize, wire: usize, waited: Duration, now: Instant) {
        if self.settled_until.is_some_and(|until| now < until) {
            return;
        }
        if self.settled_until.take().is_some() {
            // What was right may be too strong by now, or too weak.
            self.rung = self.rung.saturating_sub(1).max(FIRST);
            self.again(now);
        }
        self.plain += plain as u64;
        self.wire += wire as u64;
        self.waited += waited;
        let took = now - self.begin;
        let waits = |share: f64| self.waited.as_secs_f64() > share * took.as_secs_f64();
        if took >= TRIAL && self.wire < TRIAL_BYTES && waits(NOTHING_BUT_WAITING) {
            self.rung = (self.rung + 1).min(LADDER.len() - 1);
            self.before = None;
            self.again(now);
            return;
        }
        if took < TRIAL || self.wire < TRIAL_BYTES {
            return;
        }
        let rate = self.plain as f64 / took.as_secs_f64();
        let stronger = (self.rung + 1 < LADDER.len() && waits(WAITING)).then_some(self.rung + 1);
        let poor = self.wire as f64 > POOR * self.plain as f64;
        match self.before {
            // A weaker one was tried: the cheaper stays if it does as well.
            Some((before, brought)) if self.rung < before => {
                let keep = rate * GAIN >= brought;
                self.settle(if keep { self.rung } else { before }, now);
            }
            Some((before, brought)) if rate <= brought * GAIN => self.settle(before, now),
            None if poor && self.rung == FIRST => {
                self.before = Some((self.rung, rate));
                self.rung -= 1;
            }
            _ => match stronger {
                Some(next) => {
                    self.before = Some((self.rung, rate));
                    self.rung = next;
                }
                None => self.settle(self.rung, now),
            },
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
    pub fn new(wanted: Compression, distance: Duration) -> Encoder {
        Encoder { wanted, climb: Climb::new(distance), scratch: Vec::new(), zstd: None, stubborn: 0 }
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
        let begin = Instant::now();
        write_frame(to, Kind::Data, &self.scratch)?;
        if self.wanted == Compression::Auto {
            let now = Instant::now();
            self.climb.count(bytes.len(), self.scratch.len(), now - begin, now);
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
            let (mut encoder, mut decoder) = (Encoder::new(compression, Duration::ZERO), Decoder::default());
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
            Encoder::new(compression, Duration::ZERO).write_block(&mut wire, 0, &[1; BLOCK]).unwrap();
            let payload = &mut wire[5..];
            payload[9..13].copy_from_slice(&100u32.to_le_bytes());
            assert!(decoder.read_block(payload).is_err());
        }
        assert!(decoder.scratch.capacity() <= BLOCK);
    }

    #[test]
    fn what_resists_is_sent_as_it_is_until_it_does_not_resist_any_more() {
        let mut encoder = Encoder::new(Compression::Auto, Duration::ZERO);
        for _ in 0..STUBBORN + 1 {
            encoder.write_block(&mut Vec::new(), 0, &noise()).unwrap();
        }
        assert_eq!(encoder.coding(), Coding::Plain);
        for _ in 0..TRY_EVERY {
            encoder.write_block(&mut Vec::new(), 0, &[7; BLOCK]).unwrap();
        }
        assert_eq!(encoder.coding(), Coding::Lz4);
    }

    /// One second of a trial: so many bytes of files, of which `left` went over the line, which was waited for.
    fn second(climb: &mut Climb, plain: u64, left: f64, waited: f64, now: &mut Instant) {
        *now += Duration::from_secs(1);
        let wire = (plain as f64 * left) as usize;
        climb.count(plain as usize, wire.max(TRIAL_BYTES as usize), Duration::from_secs_f64(waited), *now);
    }

    const MB: u64 = 1 << 20;

    /// Megabytes per second that a link brings with each rung, and what compression leaves: it ends where it is fastest.
    fn settles_on(rates: [u64; 5], left: f64, waited: f64) -> Coding {
        let (mut climb, mut now) = (Climb::new(Duration::ZERO), Instant::now());
        climb.begin = now;
        while climb.settled_until.is_none() {
            let rate = rates[climb.rung];
            second(&mut climb, rate * MB, left, waited, &mut now);
        }
        climb.coding()
    }

    #[test]
    fn auto_climbs_as_far_as_it_pays() {
        assert_eq!(settles_on([0, 900, 800, 300, 90], 0.1, 0.9), Coding::Lz4);
        assert_eq!(settles_on([0, 900, 910, 300, 90], 0.1, 0.9), Coding::Lz4, "hardly more is not more");
        assert_eq!(settles_on([0, 230, 330, 300, 90], 0.1, 0.9), Coding::Zstd(1));
        assert_eq!(settles_on([0, 200, 300, 400, 500], 0.1, 0.9), Coding::Zstd(9));
    }

    #[test]
    fn where_the_line_is_not_waited_for_nothing_stronger_is_tried() {
        assert_eq!(settles_on([0, 200, 300, 400, 500], 0.1, 0.2), Coding::Lz4);
    }

    #[test]
    fn a_far_or_slow_line_has_the_strong_methods_at_once() {
        for (distance, first) in [(0, Coding::Lz4), (20, Coding::Zstd(1)), (100, Coding::Zstd(3))] {
            assert_eq!(Climb::new(Duration::from_millis(distance)).coding(), first);
        }
        // Much less than a trial wants, and all of the time was spent waiting for it to go out.
        let (mut climb, mut now) = (Climb::new(Duration::ZERO), Instant::now());
        climb.begin = now;
        for stronger in [Coding::Zstd(1), Coding::Zstd(3), Coding::Zstd(9), Coding::Zstd(9)] {
            now += Duration::from_secs(1);
            climb.count(BLOCK, 600_000, Duration::from_millis(950), now);
            assert_eq!(climb.coding(), stronger);
        }
        // The processor is the limit: nothing is known before there is enough of it.
        let mut climb = Climb::new(Duration::ZERO);
        climb.count(BLOCK, 600_000, Duration::from_millis(100), Instant::now() + TRIAL);
        assert_eq!(climb.coding(), Coding::Lz4);
    }

    #[test]
    fn what_hardly_compresses_goes_as_it_is_unless_that_is_slower() {
        assert_eq!(settles_on([300, 200, 900, 900, 900], 0.86, 0.9), Coding::Plain);
        assert_eq!(settles_on([195, 200, 900, 900, 900], 0.86, 0.9), Coding::Plain, "as fast, and cheaper");
        assert_eq!(settles_on([100, 115, 900, 900, 900], 0.86, 0.9), Coding::Lz4);
    }

    #[test]
    fn it_is_judged_again_after_a_while() {
        let (mut climb, mut now) = (Climb::new(Duration::ZERO), Instant::now());
        climb.begin = now;
        second(&mut climb, 100 * MB, 0.1, 0.9, &mut now);
        assert_eq!(climb.coding(), Coding::Zstd(1));
        second(&mut climb, 50 * MB, 0.1, 0.9, &mut now);
        assert_eq!((climb.coding(), climb.settled_until.is_some()), (Coding::Lz4, true));
        now += HOLDS;
        climb.count(50, TRIAL_BYTES as usize, Duration::ZERO, now);
        assert_eq!(climb.coding(), Coding::Lz4);
        second(&mut climb, 100 * MB, 0.1, 0.9, &mut now);
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
