"""Word lists of the synthetic catalog: every product and every brand here is invented."""

from __future__ import annotations

# department -> subcategory -> product nouns. Each department lists five subcategories of four nouns.
DEPARTMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Kitchen & Dining": {
        "Cookware": ("Frying Pan", "Stock Pot", "Saucepan", "Wok"),
        "Knives & Cutting": ("Chef Knife", "Paring Knife", "Cutting Board", "Kitchen Shears"),
        "Coffee & Tea": ("Coffee Grinder", "French Press", "Tea Kettle", "Espresso Tamper"),
        "Baking": ("Muffin Tin", "Rolling Pin", "Cake Mold", "Cooling Rack"),
        "Food Storage": ("Lunch Box", "Glass Jar Set", "Bread Box", "Vacuum Canister"),
    },
    "Outdoor & Camping": {
        "Tents & Shelters": ("Dome Tent", "Tarp Shelter", "Canopy", "Bivvy"),
        "Sleeping Gear": ("Sleeping Bag", "Air Mattress", "Camp Pillow", "Hammock"),
        "Hiking Packs": ("Daypack", "Trekking Backpack", "Hydration Pack", "Waist Pack"),
        "Camp Lighting": ("Headlamp", "Camp Lantern", "Tent Light", "Torch"),
        "Climbing": ("Climbing Harness", "Carabiner Set", "Chalk Bag", "Belay Device"),
    },
    "Audio": {
        "Headphones": ("Over-Ear Headphones", "Wireless Earbuds", "Studio Headphones", "Sport Earphones"),
        "Speakers": ("Bookshelf Speaker", "Soundbar", "Subwoofer", "Portable Speaker"),
        "Turntables": ("Turntable", "Phono Preamp", "Record Brush", "Stylus Cartridge"),
        "Microphones": ("Condenser Microphone", "Lavalier Mic", "Boom Arm", "Pop Filter"),
        "Radios": ("Alarm Clock Radio", "Shortwave Radio", "Shower Radio", "Internet Radio"),
    },
    "Garden": {
        "Hand Tools": ("Garden Trowel", "Pruning Shears", "Hand Fork", "Weeder"),
        "Watering": ("Watering Can", "Garden Hose", "Sprinkler", "Drip Irrigation Kit"),
        "Planters": ("Plant Pot", "Hanging Basket", "Raised Bed", "Window Box"),
        "Bird Care": ("Bird Feeder", "Nest Box", "Bird Bath", "Suet Cage"),
        "Grills": ("Charcoal Grill", "Grill Tongs", "Smoker Box", "Pizza Stone"),
    },
    "Beauty": {
        "Hair Care": ("Shampoo", "Hair Conditioner", "Hair Mask", "Detangling Brush"),
        "Skin Care": ("Face Moisturizer", "Clay Cleanser", "Night Serum", "Toner"),
        "Makeup": ("Lipstick", "Mascara", "Eyeshadow Palette", "Concealer"),
        "Fragrance": ("Eau de Parfum", "Cologne", "Body Mist", "Perfume Oil"),
        "Nail Care": ("Nail Polish", "Cuticle Oil", "Nail File Set", "Manicure Lamp"),
    },
    "Office": {
        "Writing": ("Fountain Pen", "Gel Pen Set", "Mechanical Pencil", "Highlighter Pack"),
        "Paper & Notebooks": ("Dotted Notebook", "Sticky Notes", "Weekly Planner", "Index Cards"),
        "Desk Furniture": ("Standing Desk", "Monitor Riser", "Footrest", "Desk Chair"),
        "Filing": ("File Cabinet", "Ring Binder", "Document Tray", "Hanging Folders"),
        "Shredders & Labels": ("Paper Shredder", "Label Maker", "Laminator", "Postal Scale"),
    },
    "Toys & Games": {
        "Board Games": ("Strategy Board Game", "Card Game", "Dice Game", "Trivia Game"),
        "Puzzles": ("Jigsaw Puzzle", "Wooden Puzzle", "Puzzle Cube", "Brain Teaser"),
        "Building Sets": ("Building Blocks", "Marble Run", "Model Kit", "Magnetic Tiles"),
        "Plush": ("Teddy Bear", "Plush Rabbit", "Hand Puppet", "Plush Whale"),
        "Outdoor Play": ("Kite", "Jump Rope", "Water Blaster", "Bubble Machine"),
    },
    "Pet Supplies": {
        "Dog Walking": ("Dog Leash", "Dog Harness", "Dog Collar", "Waste Bag Holder"),
        "Cat Furniture": ("Cat Tree", "Scratching Post", "Cat Tunnel", "Window Perch"),
        "Aquarium": ("Aquarium Filter", "Fish Tank", "Aquarium Heater", "Gravel Cleaner"),
        "Feeding": ("Slow Feeder Bowl", "Pet Fountain", "Treat Jar", "Kibble Scoop"),
        "Grooming": ("Pet Brush", "Nail Clipper", "Pet Shampoo", "Deshedding Glove"),
    },
}

BRANDS: tuple[str, ...] = (
    "Norvane", "Halbrook", "Tessaly", "Quillon", "Brandmoor", "Ostrava Lane", "Pellworth", "Kirivo",
    "Lumenza", "Zephyrite", "Corvale", "Aldermint", "Fennick", "Uplandia", "Vantoro", "Sablefin",
    "Driftwell", "Myrtlane", "Jasperine", "Ekkoria", "Rowanhall", "Thistledon", "Galvana", "Wexcombe",
    "Yarrowby", "Ibexa", "Cinderly", "Orlanth", "Mirabeck", "Stonefleet", "Palisso", "Hexenby",
    "Larkmont", "Dunmarrow", "Velloura", "Bramblewick", "Castorel", "Nimburo", "Ferrowick", "Solvenna",
)  # fmt: skip

MODELS: tuple[str, ...] = (
    "Kestrel", "Aurora", "Summit", "Harbor", "Cinder", "Willow", "Atlas", "Comet", "Juniper", "Meridian",
    "Pioneer", "Raven", "Sierra", "Tundra", "Vesper", "Zenith", "Cobalt", "Drift", "Ember", "Fjord",
    "Glacier", "Horizon", "Indigo", "Lagoon", "Maple", "Nova", "Orbit", "Prairie", "Quartz", "Saffron",
)  # fmt: skip

ADJECTIVES: tuple[str, ...] = (
    "Compact", "Classic", "Lightweight", "Premium", "Everyday", "Deluxe", "Slim", "Durable", "Handmade",
    "Travel", "Modern", "Vintage", "Soft-Touch", "Heavy-Duty", "Quiet", "Folding", "Stackable", "Eco",
    "Professional", "Mini",
)  # fmt: skip

VARIANTS: tuple[str, ...] = (
    "Black", "Slate Gray", "Forest Green", "Navy Blue", "Ivory", "Copper", "Small", "Medium", "Large",
    "2-Pack", "4-Pack", "Gift Box", "Red", "Sand", "Pearl White", "Extra Large",
)  # fmt: skip
