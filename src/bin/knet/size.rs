//! What `--size` means in every command: the size of a photo after its resize.

use knet::model::Config;
use std::collections::BTreeSet;

/// Height and width of a resized photo, in pixels. The network sees them rounded up to multiples of
/// [`Config::size_divisor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub height: usize,
    pub width: usize,
}

impl Size {
    /// That of a lying photo that fills the model's own size.
    pub fn of(config: &Config) -> Size {
        let [height, width] = config.input.size;
        Size { height, width }
    }

    /// The short and the long side, into which photos of any shape are resized to fit.
    pub fn sides(self) -> (usize, usize) {
        (self.height.min(self.width), self.height.max(self.width))
    }

    /// Height and width of the input of `config`'s network.
    pub fn padded(self, config: &Config) -> [usize; 2] {
        [self.height, self.width].map(|side| side.next_multiple_of(config.size_divisor()))
    }
}

/// Heights and widths of the network's input for these sizes, each once; without any, for photos that fill
/// the model's own size, lying and standing.
pub fn inputs(named: &[Size], config: &Config) -> BTreeSet<(usize, usize)> {
    let lying = Size::of(config);
    let own = [lying, Size { height: lying.width, width: lying.height }];
    let sizes = if named.is_empty() { &own[..] } else { named };
    sizes.iter().map(|size| size.padded(config).into()).collect()
}

/// `HEIGHTxWIDTH`, or `SHORT,LONG`, in pixels.
pub fn parse(text: &str) -> Result<Size, String> {
    let side = |s: &str| s.trim().parse::<usize>().ok().filter(|&n| (1..=16384).contains(&n));
    let sides = |(a, b): (&str, &str)| Some((side(a)?, side(b)?));
    let found = match text.split_once(',') {
        Some(pair) => sides(pair).filter(|(short, long)| short <= long),
        None => text.split_once(['x', 'X']).and_then(sides),
    };
    found.map(|(height, width)| Size { height, width }).ok_or_else(|| {
        format!(
            "`{text}` is neither HEIGHTxWIDTH nor SHORT,LONG with sides from 1 to 16384, such as 800x1333 or 800,1333"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_mean_one_size() {
        let size = Size { height: 800, width: 1333 };
        assert_eq!(parse("800x1333"), Ok(size));
        assert_eq!(parse("800,1333"), Ok(size));
        let detector = Config::named("knet_s3_r50_fpn").unwrap();
        assert_eq!((size.sides(), size.padded(&detector)), ((800, 1333), [800, 1344]));
        let semantic = Config::named("knet_s3_fcn_r50-d8").unwrap();
        assert_eq!(size.padded(&semantic), [800, 1333]);
        let standing = parse("1333X800").unwrap();
        assert_eq!((standing.sides(), standing.padded(&detector)), ((800, 1333), [1344, 800]));
        for text in ["", "12", "0x5", "5,0", "200,100", "1x2x3", "20000x3", "axb"] {
            assert!(parse(text).unwrap_err().contains("HEIGHTxWIDTH nor SHORT,LONG"), "{text}");
        }
    }
}
