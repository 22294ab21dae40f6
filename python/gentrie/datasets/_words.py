"""Ordinary words that the synthetic titles are made of."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """Split a text at white space."""
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """Split a text at bars and line ends."""
    return tuple(phrase.strip() for phrase in text.replace("\n", "|").split("|"))


ADJECTIVES = words(
    """Silent Broken Crimson Hidden Last Dark Golden Frozen Lost Eternal Burning Endless Hollow Wild Ancient
    Iron Fallen Sacred Distant Forgotten Savage Little Secret Final Midnight Silver Rising Bitter Brave
    Scarlet Quiet Strange Shattered Deep Cold Bright Lonely Electric Twisted Royal Infinite Black White Red
    Blue Green Mad Happy Sweet Dirty Perfect Dangerous Beautiful Wicked Holy Cruel Gentle Restless Stolen
    Sleeping Dancing Flying Running Invisible Impossible Mechanical Magnetic Cosmic Solar Lunar Tiny Giant
    Super Mega Ultra Hyper Neon Pixel Rusty Dusty Rainy Stormy Windy Sunny Snowy Misty Northern Southern
    Eastern Western Inner Outer Upper Lower Second Third Seventh Thousand Hundred Double Triple Young Old
    New Modern Classic Digital Virtual Urban Rural Wooden Glass Velvet Paper Stone Copper Bronze Emerald
    Amber Ivory Obsidian Crystal Phantom Spectral Haunted Cursed Blessed Doomed Immortal Mortal Divine
    Infernal Arctic Tropical Desert Floating Sunken Drowned Buried Wandering Marching Fearless Reckless
    Ruthless Faithful Noble Humble Proud Angry Hungry Lucky Clumsy Lazy Sleepy Grumpy Crazy Funny Curious
    Clever Daring Mighty Furious Vicious Merciless Relentless Radiant Vivid Pale Faded Painted Gilded Woven
    Tangled Crooked Narrow Open Closed Locked Sealed Empty Heavy Light Swift Slow Early Late Simple Pure"""
)

NOUNS = words(
    """Kingdom Empire Legacy Legend Shadow Storm Night Dawn Dusk Fire Ice Blood Bone Steel Blade Sword Shield
    Crown Throne Dragon Wolf Raven Lion Tiger Bear Fox Hawk Eagle Serpent Spider Knight King Queen Prince
    Princess Hunter Warrior Soldier Wizard Witch Thief Pirate Captain Sailor Pilot Ranger Guardian Warden
    Keeper Watcher Stranger Traveler Dreamer Rider Runner Builder Maker Farmer Baker Doctor Detective Agent
    Spy Ninja Samurai Robot Machine Engine Factory Tower Castle Dungeon Temple Tomb Crypt Cave Mountain
    Valley River Ocean Sea Island Forest Garden Meadow Desert Harbor Village City Town Street Road Bridge
    Gate Door House Home Manor Hotel School Station Planet Star Galaxy Moon Sun Sky Cloud Rain Snow Wind
    Thunder Lightning Flame Ember Ash Dust Sand Stone Rock Crystal Gem Gold Silver Treasure Secret Mystery
    Riddle Puzzle Story Tale Song Dance Dream Nightmare Memory Promise Destiny Fate Fortune Chaos Order War
    Battle Conflict Siege Rebellion Revenge Redemption Return Rise Fall Escape Journey Quest Adventure
    Odyssey Voyage Expedition Mission Operation Project Protocol Code Signal Echo Pulse Circuit Orbit
    Horizon Frontier Border Edge Abyss Void Realm World Land Age Era Century Winter Summer Spring Autumn
    Heart Soul Spirit Ghost Demon Angel Devil Monster Beast Creature Zombie Vampire Giant Goblin Dwarf Elf
    Troll Titan Phoenix Unicorn Rabbit Cat Dog Horse Bird Fish Whale Shark Turtle Frog Bee Butterfly Rose
    Lily Willow Oak Pine Apple Cherry Candle Lantern Mirror Mask Letter Diary Book Clock Compass Key Chain
    Arrow Hammer Anvil Cannon Tank Ship Train Racer Driver Football Baseball Tennis Golf Poker Chess
    Kitchen Cafe Market Museum Theater Circus Carnival Festival Wedding Party Birthday Christmas Holiday
    Family Brothers Sisters Friends Lovers Neighbors Heroes Legends Outlaws Rebels Strangers Survivors
    Champions Masters Tycoon Manager Simulator Arena League Squad Company Club Society Covenant Pact Oath
    Crusade Inferno Paradise Eden Utopia Oasis Sanctuary Refuge Asylum Prison Trial Verdict Justice Mercy
    Glory Honor Courage Wisdom Silence Darkness Light Twilight Eclipse Aurora Comet Meteor Nova Quantum
    Matrix Vertex Vector Element Atlas Anthem Requiem Serenade Symphony Rhapsody Ballad Prophecy Oracle
    Labyrinth Maze Passage Crossing Harvest Orchard Lagoon Canyon Glacier Volcano Tempest Hurricane
    Avalanche"""
)

# Nouns that stand at the end of a title more often than at its beginning.
THINGS = words(
    """Acrobat Admiral Alarm Alchemist Alley Almanac Altar Ambush Anchor Antler Apprentice Aquarium Archer
    Archive Armada Armor Armory Astronaut Attic Auction Avenue Avenger Axe Badge Balcony Balloon Bandit
    Banker Banner Banquet Barn Barrel Basement Battalion Bay Beacon Bell Berry Blizzard Blossom Boat
    Boulder Bounty Boxer Branch Breaker Brew Brigade Broom Buccaneer Bucket Bullet Bunker Butcher Cabin
    Cage Camel Camp Canvas Caravan Cargo Carpet Cathedral Cauldron Cavern Cellar Chamber Chapel Chapter
    Chariot Chase Chemist Chimney Choir Cinema Citadel Clan Cliff Cloak Clown Coast Cobra Collector Colony
    Commander Commando Conductor Conqueror Conspiracy Contract Convoy Corridor Corsair Cottage Council
    Countess County Courier Cowboy Cradle Crater Cricket Crow Cube Cupboard Curse Curtain Cyclone Dagger
    Daughter Deadline Deer Delta Deputy Diamond Diner Disco Dolphin Donkey Dragonfly Drum Duel Duke Dynasty
    Eagle Egg Elephant Elevator Elixir Embassy Enigma Envoy Evidence Executioner Exile Explorer Falcon
    Father Feast Feather Fencer Ferry Fiddler Fighter Flag Fleet Flood Flower Flute Fog Fool Fortress
    Fountain Fugitive Funeral Fury Future Galleon Gallery Gambler Gambit Garage Gardener General Gladiator
    Glove Goat Gorge Gorilla Governor Grave Griffin Grove Guest Guild Guitar Gunner Hall Hamlet Harp
    Harpoon Harvester Hat Heir Helmet Hen Herald Hermit Highway Hive Hound Hour Hunt Husband Hydra Idol
    Impostor Inn Inspector Invader Inventor Invasion Jackal Jaguar Jewel Joker Judge Juggler Jungle Kite
    Kiss Kraken Ladder Lady Lake Lamp Lance Lawyer Leopard Library Lighthouse Lizard Locket Lodge Lord
    Lullaby Lynx Magician Magnet Magpie Mansion Map Marathon Mariner Marshal Martyr Mason Mayor Medal
    Melody Menace Mercenary Merchant Mermaid Messenger Midwife Mill Mine Miner Minstrel Mint Miracle Monk
    Moth Mother Mountaineer Murder Musician Necklace Needle Nest Nomad Nurse Oak Observatory Orphan Outcast
    Outpost Owl Ox Paladin Palace Panther Parade Parrot Patrol Peacock Pearl Penguin Pharaoh Photographer
    Piano Pigeon Pilgrim Pioneer Pistol Plague Plantation Plot Pony Porter Portrait Postman Potion Preacher
    Prey Priest Prism Prisoner Professor Prophet Pumpkin Puppet Pyramid Raft Raid Raider Rapids Rat Rebel
    Reef Regiment Relic Ritual Rival Rogue Roof Rooster Rover Ruin Saddle Saint Sapphire Scarecrow Scholar
    Scorpion Scout Sculptor Senator Sentinel Settler Shaman Shepherd Sheriff Shore Siren Sister Skeleton
    Skull Slayer Smuggler Snake Sniper Sorcerer Spire Squire Stable Stadium Stallion Statue Steward Summit
    Surgeon Swamp Swan Swarm Tailor Teacher Tiger Timber Token Torch Tournament Tracker Trader Trail Tribe
    Trickster Trumpet Tunnel Turret Tutor Twin Tyrant Umbrella Uncle Vagabond Vault Veil Viking Village
    Vineyard Violin Viper Visitor Vulture Wagon Walker Wanderer Warehouse Warlord Waterfall Weaver Well
    Widow Wife Window Witness Woodcutter Wound Wreck Yard Zeppelin Zoo"""
)

VERBS = words(
    """Chasing Finding Saving Losing Breaking Building Catching Crossing Driving Escaping Facing Falling
    Fighting Following Forgetting Hunting Killing Knowing Leaving Living Loving Making Meeting Missing
    Moving Playing Raising Reaching Remembering Running Seeing Seeking Selling Serving Shooting Singing
    Sleeping Stealing Surviving Taking Teaching Trading Turning Waiting Waking Walking Watching Winning
    Writing"""
)

FIRST_NAMES = words(
    """Anna Tom Emma Jack Lucy Henry Alice George Clara Frank Ruth Harry Nina Paul Rosa Peter Martha Louis
    Helen Oscar Julia Walter Grace Victor Eva Simon Laura Felix Nora Daniel Irene Hugo Maria Arthur Sophie
    Charles Kate Edward Diana Robert Sarah Michael Jane William Susan David Mary James Betty John Molly Sam
    Ella Max Rosie Ben Lily Leo Ivy Adam Stella Theo Hazel Miles Violet Otto Pearl Ray Dolly Gus Mabel Ned
    Tess Abel Nell Cole Faye Dean Gwen Earl June Floyd Joan Glen Kay Ira Lena Joel Mona Kurt Olga Lars
    Petra Nils Vera Omar Zara Pedro Ines Rafael Carmen Diego Lucia Marco Bianca Pierre Colette"""
)

PLACES = words(
    """Paris London Berlin Rome Vienna Madrid Lisbon Dublin Oslo Prague Moscow Istanbul Cairo Casablanca
    Havana Tokyo Shanghai Bombay Sydney Boston Chicago Memphis Dallas Texas Nevada Montana Alaska Hawaii
    Manhattan Brooklyn Harlem Hollywood Vegas Miami Jamaica Cuba Mexico Brazil Peru Africa India China
    Japan Siberia Scotland Ireland Venice Naples Sicily Normandy Bavaria Provence Tuscany Andalusia Corfu
    Malta Tangier Zanzibar Nairobi Bali"""
)

COLORS = words(
    """Red Blue Green Yellow Pink Purple Orange Black White Brown Gray Silver Gold Teal Lime Multicolor Aqua
    Lavender Natural Turquoise"""
)

TOY_LINES = words(
    """Garden Farm Ocean Space Jungle Castle Rescue Racing Fairy Princess Pirate Dinosaur Robot Circus Kitchen
    Doctor Police Fire Train Airport Safari Arctic Ninja Monster Dragon Unicorn Puppy Kitten Pony Baby
    Family School Market Construction Builder Explorer Adventure Discovery Science Magic Music Dance Sports
    Beach Camping Holiday Birthday Rainbow Star Galaxy Super Mini Mega Giant Pocket Travel Classic Deluxe
    Jumbo Talking Singing Light-Up Glow Soft Cuddly Snuggle Dream Sparkle Glitter Fashion Style Sweet Candy
    Cupcake Bakery Pizza Picnic Tea Party Friends Learning Alphabet Number Shape Color Phonics Math Reading
    Spelling Geography History Nature Bug Bird Butterfly Horse Zoo Vet Woodland Forest Meadow Harbor
    Lighthouse Island Treasure Mystery Spy Detective Hero Villain Galactic Turbo Thunder Lightning Storm
    Power Extreme Stunt Trick Rally Rocket Shuttle Lunar Solar Winter Summer Spring Enchanted Royal Golden
    Crystal Mermaid Wizard Knight Viking Western Ranch Stable Treehouse Playground Carnival Talent Rock Pop
    Jazz Ballet Soccer Baseball Basketball Football Hockey Golf Tennis Surf Skate"""
)

TOY_PRODUCTS = phrases(
    """Playset|Doll|Action Figure|Puzzle|Board Game|Card Game|Building Set|Building Blocks|Plush
    Stuffed Animal|Vehicle|Truck|Race Car|Fire Truck|Train Set|Train Engine|Helicopter|Airplane|Boat
    Ride-On|Scooter|Tricycle|Wagon|Wooden Blocks|Stacking Rings|Shape Sorter|Activity Table|Activity Center
    Activity Cube|Play Mat|Play Tent|Tunnel|Ball Pit|Bubble Machine|Bubble Wand|Water Blaster|Dart Blaster
    Foam Sword|Costume|Dress-Up Set|Tea Set|Dollhouse|Furniture Set|Kitchen Set|Play Food Set|Shopping Cart
    Cash Register|Tool Set|Workbench|Doctor Kit|Science Kit|Chemistry Set|Microscope|Telescope|Craft Kit
    Jewelry Kit|Bead Set|Sticker Book|Coloring Book|Stamp Set|Crayons|Markers|Paint Set|Modeling Clay
    Play Sand|Easel|Drawing Board|Magnetic Board|Flash Cards|Learning Laptop|Learning Tablet|Game Cartridge
    Musical Keyboard|Drum Set|Guitar|Xylophone|Karaoke Machine|Walkie Talkies|Remote Control Car
    Remote Control Robot|Quadcopter|Kite|Yo-Yo|Spinning Top|Marble Run|Domino Set|Chess Set|Dice Game
    Trivia Game|Memory Game|Bingo Game|Floor Puzzle|Jigsaw Puzzle|Cube Puzzle|Finger Puppets|Hand Puppet
    Puppet Theater|Figurine|Mini Figures|Collector Figure|Die-Cast Car|Model Kit|Track Pack|Expansion Pack
    Booster Pack|Starter Set|Accessory Pack|Gift Set|Backpack|Lunch Box|Night Light|Alarm Clock|Piggy Bank
    Swing|Slide|Sandbox|Trampoline|Bowling Set|Basketball Hoop|T-Ball Set|Golf Set|Fishing Game|Ring Toss
    Bath Toy|Bath Book|Rattle|Teether|Mobile|Walker|Rocking Horse|Push Toy|Pull Toy|Jack-in-the-Box
    Nesting Dolls|Magic Set|Slime Kit|Rocket Kit"""
)

TOY_PARTS = phrases(
    """Lights and Sounds|Stickers|Carrying Case|Storage Bag|Storage Bin|Instruction Booklet|Play Mat
    Removable Wheels|Opening Doors|Moving Arms|Working Lights|Real Sounds|Comb and Brush|Extra Outfit
    Two Outfits|Bottle and Blanket|Helmet and Shield|Sword|Wand and Tiara|Bonus Figure|Bonus DVD|Story Book
    Score Pad|Sand Timer|Dice|Launcher|Ramp|Charger|Batteries|USB Cable|Microphone|Stand|Removable Tray
    Magnetic Pieces|Wooden Tray|Carry Handle|Safety Straps|Washable Cover|Glow Stars|Hidden Compartment
    Spinning Gears|Soft Wings|Poseable Legs|Display Box|Collector Card|Fold-Out Map|Puppy|Kitten
    Baby Dragon|Horse and Saddle|Garden Tools|Cooking Utensils|Tea Cups|Cupcakes|Paint Brushes"""
)
