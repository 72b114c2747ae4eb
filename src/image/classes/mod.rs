//! Names, ids and colours of classes.

pub mod named;

use std::borrow::Cow;

/// One class of a data set. Its position in a list is the class index of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Category id in result files (COCO's ids have gaps).
    pub id: u32,
    /// Name for people.
    pub name: Cow<'static, str>,
    /// True for countable objects, false for stuff (sky, grass).
    pub is_thing: bool,
    /// Usual colour, R G B.
    pub colour: [u8; 3],
}

/// The COCO classes in the order of the networks: 80 things, then 53 stuff classes. Instance models use the
/// first 80.
pub fn coco() -> &'static [Class] {
    &COCO
}

/// The 150 classes of ADE20K in the order of the networks.
pub fn ade20k() -> Vec<Class> {
    let mut classes = numbered(named::ADE20K.len(), 0);
    classes.iter_mut().zip(named::ADE20K).for_each(|(class, name)| class.name = name.into());
    classes
}

/// Stand-in classes for a model whose names are not known: `class 0`, `class 1`, ..., the first `things`
/// being things.
pub fn numbered(count: usize, things: usize) -> Vec<Class> {
    (0..count)
        .map(|i| Class {
            id: i as u32,
            name: format!("class {i}").into(),
            is_thing: i < things,
            colour: super::palette::class_colour(i, count),
        })
        .collect()
}

const fn class(id: u32, name: &'static str, is_thing: bool, colour: [u8; 3]) -> Class {
    Class { id, name: Cow::Borrowed(name), is_thing, colour }
}

/// Ids, names and colours as published with COCO panoptic (panopticapi `panoptic_coco_categories.json`).
#[rustfmt::skip]
static COCO: [Class; 133] = [
    class(1, "person", true, [220, 20, 60]),
    class(2, "bicycle", true, [119, 11, 32]),
    class(3, "car", true, [0, 0, 142]),
    class(4, "motorcycle", true, [0, 0, 230]),
    class(5, "airplane", true, [106, 0, 228]),
    class(6, "bus", true, [0, 60, 100]),
    class(7, "train", true, [0, 80, 100]),
    class(8, "truck", true, [0, 0, 70]),
    class(9, "boat", true, [0, 0, 192]),
    class(10, "traffic light", true, [250, 170, 30]),
    class(11, "fire hydrant", true, [100, 170, 30]),
    class(13, "stop sign", true, [220, 220, 0]),
    class(14, "parking meter", true, [175, 116, 175]),
    class(15, "bench", true, [250, 0, 30]),
    class(16, "bird", true, [165, 42, 42]),
    class(17, "cat", true, [255, 77, 255]),
    class(18, "dog", true, [0, 226, 252]),
    class(19, "horse", true, [182, 182, 255]),
    class(20, "sheep", true, [0, 82, 0]),
    class(21, "cow", true, [120, 166, 157]),
    class(22, "elephant", true, [110, 76, 0]),
    class(23, "bear", true, [174, 57, 255]),
    class(24, "zebra", true, [199, 100, 0]),
    class(25, "giraffe", true, [72, 0, 118]),
    class(27, "backpack", true, [255, 179, 240]),
    class(28, "umbrella", true, [0, 125, 92]),
    class(31, "handbag", true, [209, 0, 151]),
    class(32, "tie", true, [188, 208, 182]),
    class(33, "suitcase", true, [0, 220, 176]),
    class(34, "frisbee", true, [255, 99, 164]),
    class(35, "skis", true, [92, 0, 73]),
    class(36, "snowboard", true, [133, 129, 255]),
    class(37, "sports ball", true, [78, 180, 255]),
    class(38, "kite", true, [0, 228, 0]),
    class(39, "baseball bat", true, [174, 255, 243]),
    class(40, "baseball glove", true, [45, 89, 255]),
    class(41, "skateboard", true, [134, 134, 103]),
    class(42, "surfboard", true, [145, 148, 174]),
    class(43, "tennis racket", true, [255, 208, 186]),
    class(44, "bottle", true, [197, 226, 255]),
    class(46, "wine glass", true, [171, 134, 1]),
    class(47, "cup", true, [109, 63, 54]),
    class(48, "fork", true, [207, 138, 255]),
    class(49, "knife", true, [151, 0, 95]),
    class(50, "spoon", true, [9, 80, 61]),
    class(51, "bowl", true, [84, 105, 51]),
    class(52, "banana", true, [74, 65, 105]),
    class(53, "apple", true, [166, 196, 102]),
    class(54, "sandwich", true, [208, 195, 210]),
    class(55, "orange", true, [255, 109, 65]),
    class(56, "broccoli", true, [0, 143, 149]),
    class(57, "carrot", true, [179, 0, 194]),
    class(58, "hot dog", true, [209, 99, 106]),
    class(59, "pizza", true, [5, 121, 0]),
    class(60, "donut", true, [227, 255, 205]),
    class(61, "cake", true, [147, 186, 208]),
    class(62, "chair", true, [153, 69, 1]),
    class(63, "couch", true, [3, 95, 161]),
    class(64, "potted plant", true, [163, 255, 0]),
    class(65, "bed", true, [119, 0, 170]),
    class(67, "dining table", true, [0, 182, 199]),
    class(70, "toilet", true, [0, 165, 120]),
    class(72, "tv", true, [183, 130, 88]),
    class(73, "laptop", true, [95, 32, 0]),
    class(74, "mouse", true, [130, 114, 135]),
    class(75, "remote", true, [110, 129, 133]),
    class(76, "keyboard", true, [166, 74, 118]),
    class(77, "cell phone", true, [219, 142, 185]),
    class(78, "microwave", true, [79, 210, 114]),
    class(79, "oven", true, [178, 90, 62]),
    class(80, "toaster", true, [65, 70, 15]),
    class(81, "sink", true, [127, 167, 115]),
    class(82, "refrigerator", true, [59, 105, 106]),
    class(84, "book", true, [142, 108, 45]),
    class(85, "clock", true, [196, 172, 0]),
    class(86, "vase", true, [95, 54, 80]),
    class(87, "scissors", true, [128, 76, 255]),
    class(88, "teddy bear", true, [201, 57, 1]),
    class(89, "hair drier", true, [246, 0, 122]),
    class(90, "toothbrush", true, [191, 162, 208]),
    class(92, "banner", false, [255, 255, 128]),
    class(93, "blanket", false, [147, 211, 203]),
    class(95, "bridge", false, [150, 100, 100]),
    class(100, "cardboard", false, [168, 171, 172]),
    class(107, "counter", false, [146, 112, 198]),
    class(109, "curtain", false, [210, 170, 100]),
    class(112, "door-stuff", false, [92, 136, 89]),
    class(118, "floor-wood", false, [218, 88, 184]),
    class(119, "flower", false, [241, 129, 0]),
    class(122, "fruit", false, [217, 17, 255]),
    class(125, "gravel", false, [124, 74, 181]),
    class(128, "house", false, [70, 70, 70]),
    class(130, "light", false, [255, 228, 255]),
    class(133, "mirror-stuff", false, [154, 208, 0]),
    class(138, "net", false, [193, 0, 92]),
    class(141, "pillow", false, [76, 91, 113]),
    class(144, "platform", false, [255, 180, 195]),
    class(145, "playingfield", false, [106, 154, 176]),
    class(147, "railroad", false, [230, 150, 140]),
    class(148, "river", false, [60, 143, 255]),
    class(149, "road", false, [128, 64, 128]),
    class(151, "roof", false, [92, 82, 55]),
    class(154, "sand", false, [254, 212, 124]),
    class(155, "sea", false, [73, 77, 174]),
    class(156, "shelf", false, [255, 160, 98]),
    class(159, "snow", false, [255, 255, 255]),
    class(161, "stairs", false, [104, 84, 109]),
    class(166, "tent", false, [169, 164, 131]),
    class(168, "towel", false, [225, 199, 255]),
    class(171, "wall-brick", false, [137, 54, 74]),
    class(175, "wall-stone", false, [135, 158, 223]),
    class(176, "wall-tile", false, [7, 246, 231]),
    class(177, "wall-wood", false, [107, 255, 200]),
    class(178, "water-other", false, [58, 41, 149]),
    class(180, "window-blind", false, [183, 121, 142]),
    class(181, "window-other", false, [255, 73, 97]),
    class(184, "tree-merged", false, [107, 142, 35]),
    class(185, "fence-merged", false, [190, 153, 153]),
    class(186, "ceiling-merged", false, [146, 139, 141]),
    class(187, "sky-other-merged", false, [70, 130, 180]),
    class(188, "cabinet-merged", false, [134, 199, 156]),
    class(189, "table-merged", false, [209, 226, 140]),
    class(190, "floor-other-merged", false, [96, 36, 108]),
    class(191, "pavement-merged", false, [96, 96, 96]),
    class(192, "mountain-merged", false, [64, 170, 64]),
    class(193, "grass-merged", false, [152, 251, 152]),
    class(194, "dirt-merged", false, [208, 229, 228]),
    class(195, "paper-merged", false, [206, 186, 171]),
    class(196, "food-other-merged", false, [152, 161, 64]),
    class(197, "building-other-merged", false, [116, 112, 0]),
    class(198, "rock-merged", false, [0, 114, 143]),
    class(199, "wall-other-merged", false, [102, 102, 156]),
    class(200, "rug-merged", false, [250, 141, 255]),
];
