"""What the people of the demo's past talk about: a workshop that they share."""

from __future__ import annotations

from typing import NamedTuple


class Person(NamedTuple):
    """Someone with a way of writing.

    Attributes:
        talks: How much they say, compared with the others.
        is_lowercase: Whether they leave out capitals and full stops.
        exclaims: How often they exclaim, from 0 to 1.
        emoji: What they sometimes end with.
    """

    name: str
    talks: float = 1.0
    is_lowercase: bool = False
    exclaims: float = 0.0
    emoji: tuple[str, ...] = ()


PEOPLE = (
    Person("Ada", 1.6),
    Person("Bram", 1.2, is_lowercase=True),
    Person("Chidi", 1.0, exclaims=0.3),
    Person("Dalia", 1.4, emoji=("🙂", "🌱")),
    Person("Emre", 0.9, is_lowercase=True, emoji=("😅",)),
    Person("Freya", 1.3, exclaims=0.2),
    Person("Goran", 0.6),
    Person("Hana", 1.1, emoji=("✨", "🙌")),
    Person("Ines", 0.8),
    Person("Jonas", 0.7, is_lowercase=True),
    Person("Kemi", 1.0, exclaims=0.4, emoji=("🎉", "😄")),
    Person("Lucas", 0.4),
)


class Topic(NamedTuple):
    """Something that goes wrong or wants doing, and what people say to that."""

    thing: str
    troubles: tuple[str, ...]
    answers: tuple[str, ...]
    tasks: tuple[str, ...]


TOPICS = (
    Topic(
        "laser cutter",
        (
            "stops halfway through a sheet",
            "leaves scorched edges on birch",
            "cannot be found on the network",
            "cuts through on the left and not on the right",
            "says that the lid is open, and it is not",
        ),
        (
            "Clean the lens first, nine times out of ten it is that.",
            "Is the air assist on? The valve is behind the door.",
            "Focus it again, someone may have moved the bed.",
            "Slow it down to 12 and give it two passes.",
            "The lid switch sticks. Open and close it once, gently.",
        ),
        ("engrave the name plates", "cut the boxes for the spring fair", "test the new plywood"),
    ),
    Topic(
        "3D printer",
        (
            "pulls strings between all the parts",
            "lost the first layer again",
            "makes a grinding sound on the way up",
            "prints everything slightly too large",
            "stopped at 80 percent overnight",
        ),
        (
            "Dry the filament, that roll has been out for weeks.",
            "Wipe the plate with alcohol and it will stick.",
            "Grease the left rod, the small tube is in the drawer.",
            "Lower the temperature by ten degrees.",
            "Check the fan before anything else.",
        ),
        (
            "print the hooks for the coat rack",
            "make spare knobs for the stove",
            "print brackets for the shelf",
        ),
    ),
    Topic(
        "coffee machine",
        (
            "asks to be descaled, and I have just done that",
            "makes only half a cup",
            "blinks orange and does nothing",
            "sounds like a tractor this morning",
        ),
        (
            "Hold both buttons for five seconds, it forgets that it was cleaned.",
            "The tank is not in properly. Push until it clicks.",
            "Somebody filled it with the oily beans. Please don't.",
            "Switch it off at the wall and count to ten.",
            "I would miss it more than any of us.",
        ),
        ("order beans", "descale it properly", "wash the milk jug that nobody owns"),
    ),
    Topic(
        "cargo bike",
        (
            "has a flat at the back again",
            "squeaks when braking downhill",
            "is not where it should be",
            "drops its chain in third gear",
            "has a battery that lasts ten minutes",
        ),
        (
            "There are two spare tubes in the red box.",
            "I took it to the market, back by four.",
            "The chain is worn. I can bring a new one on Thursday.",
            "Charge it overnight, it reads wrong when it is cold.",
            "A drop of oil on the pads is exactly what it does not need.",
        ),
        ("fetch the timber", "bring the compost over", "get it inspected before summer"),
    ),
    Topic(
        "herb garden",
        (
            "has slugs in every corner",
            "dried out over the weekend",
            "is more mint than anything else now",
            "has aphids on the beans",
        ),
        (
            "Water it in the evening and not at noon.",
            "Copper tape around the beds, it really helped last year.",
            "Cut the mint down to the ground. It always comes back.",
            "Soapy water, three evenings in a row.",
            "I can bring straw to cover the beds.",
        ),
        ("plant the tomatoes", "build the second raised bed", "set up the rain barrel"),
    ),
    Topic(
        "door lock",
        (
            "does not take my card since this morning",
            "opens and closes all by itself",
            "beeps three times and stays shut",
            "needs three tries when it rains",
        ),
        (
            "The cards were renewed on Monday. Hold yours to the reader inside once.",
            "Three beeps are the battery, there are new ones in the desk.",
            "Pull the door towards you while you turn.",
            "I will let you in, I'm there in five minutes.",
            "I have written to the people who installed it.",
        ),
        ("program the new cards", "change its battery", "write down how it works"),
    ),
    Topic(
        "table saw",
        (
            "trips the fuse when the vacuum is on",
            "cuts at a slight angle",
            "burns the wood on long cuts",
            "has its push stick missing",
        ),
        (
            "They are on the same fuse. Plug the vacuum in on the other side.",
            "The fence has moved. Measure front and back before you cut.",
            "That blade is done, the new one is on the shelf above.",
            "Please do not use it without. I'll make a new one tonight.",
            "Ask Goran, he set it up.",
        ),
        ("cut the legs for the long table", "saw the old pallets", "sharpen the good blade"),
    ),
    Topic(
        "network",
        (
            "is slow upstairs",
            "drops out every hour, on the hour",
            "does not let the printer in",
            "is down in the back room",
        ),
        (
            "Use the other access point, the old one should have been gone by now.",
            "Someone backs up a whole disk at that time. It was me, sorry.",
            "Give the printer a fixed address, then it stays.",
            "The cable under the stairs had come loose. Better now?",
            "Restarting the switch helped last time.",
        ),
        ("label the cables", "move the router", "put up the new access point"),
    ),
    Topic(
        "sewing machine",
        (
            "skips every third stitch",
            "jams on the thick canvas",
            "breaks the thread all the time",
            "runs on after I lift my foot",
        ),
        (
            "New needle. A blunt one does precisely that.",
            "Thread it again with the foot up, it matters.",
            "Use the size 100 needle for canvas and go slowly.",
            "There is lint under the plate, the little brush is in the box.",
            "Take the blue one, the white one is waiting for a part.",
        ),
        ("mend the curtains", "make aprons for everyone", "hem the banner"),
    ),
    Topic(
        "projector",
        (
            "turns everything slightly green",
            "does not find my laptop",
            "switches itself off after an hour",
            "shows last year's slides, and I have no idea how",
        ),
        (
            "Wiggle the cable, it is the cable.",
            "There is an adapter in the second drawer. It is the last one, so bring it back.",
            "It overheats with the curtain behind it. Move it forward a bit.",
            "Choose input two and wait a little.",
            "There is a stick in its side. Those are the slides.",
        ),
        ("set it up for film night", "find the remote control", "hang the screen straight"),
    ),
    Topic(
        "newsletter",
        (
            "went out with last month's date",
            "lands in the spam folder",
            "has a typo in the title",
            "has no picture yet",
        ),
        (
            "Nobody reads the date. Well, one person does.",
            "I have a photo of the long table, would that do?",
            "I can look over it tonight.",
            "Send it on Tuesday morning, that worked best.",
            "Make it shorter, people only read the first half.",
        ),
        ("write the part on the repair day", "collect the dates for next month", "proofread it"),
    ),
    Topic(
        "kiln",
        (
            "cooled down too fast and cracked two bowls",
            "shows an error after the first ramp",
            "is booked twice for Friday",
            "takes forever to reach 900 degrees",
        ),
        (
            "One of the coils is going. I've asked what a new one costs.",
            "Leave it closed until it is below 100, even when it hurts.",
            "I can fire mine on Saturday instead, take the slot.",
            "Error four is the thermocouple, push it in all the way.",
            "Put fewer pieces in, the lower shelf blocks the air.",
        ),
        ("fire the tiles", "sort the glazes", "clean its shelves"),
    ),
)

QUESTIONS = (
    "The {thing} {trouble}. Has anyone seen this before?",
    "Does anyone know why the {thing} {trouble}?",
    "Small problem: the {thing} {trouble}.",
    "Who knows the {thing} well? It {trouble}.",
    "The {thing} {trouble}. What am I doing wrong?",
    "Morning. The {thing} {trouble}, is it just me?",
)

FOLLOW_UPS = (
    "Had the same last week.",
    "Since when?",
    "Same here.",
    "Did anything change since yesterday?",
    "I can have a look at {time}.",
    "It was fine when I left at {time}.",
    "There's a note about it on the board, I think.",
    "Oh no, not again.",
    "Have you tried turning it off and on?",
)

THANKS = (
    "That was it, thank you.",
    "Works now, thanks {name}.",
    "You're right, {name}. Thanks.",
    "Perfect, that did it.",
    "Much better. I'll write it down so that we find it next time.",
    "Not quite, but better than before. I'll try again tomorrow.",
    "Thanks, I'd never have found that.",
)

PLANS = (
    "Who could help me to {task} on {day}?",
    "I'd like to {task} on {day} around {time}. Anyone in?",
    "We still have to {task}. Is {day} good?",
    "Reminder: on {day} we {task}. Come at {time} if you can.",
    "Can someone {task} before {day}?",
)

PLAN_ANSWERS = (
    "I'm in.",
    "Count me in.",
    "{day} is bad for me, but go ahead.",
    "I can be there from {time}.",
    "I'll bring cake.",
    "Would the day after work too?",
    "Yes, but not before {time}.",
    "I can do it alone if nobody minds.",
    "Gladly. How many of us do we need?",
    "Two hours should be enough.",
    "I'll bring the good gloves.",
)

PLAN_ENDS = (
    "Great, {day} it is.",
    "Good, then we are enough. See you at {time}.",
    "Lovely, I'll put it on the board.",
    "Thanks all.",
    "Settled then. I'll open up at {time}.",
)

NEWS = (
    "The delivery is here, {count} boxes. Could somebody help to carry?",
    "{count} people came to the open evening. That's a record.",
    "The landlord will be here on {day} at {time}, please leave the corridor free.",
    "We have {count} new members since last month. Say hello when you meet them.",
    "Somebody left a blue jacket and {count} spoons. Both are on the shelf by the door.",
    "The {thing} is free from {time} today, my booking fell through.",
    "The course on {day} has {count} places left.",
    "Finished: I got to {task}, and it only took {count} tries.",
    "Please note that the water is off on {day} from {time}.",
    "The repair day is on {day}. Last time we mended {count} things.",
)

REACTIONS = (
    "Nice.",
    "Very good news.",
    "Thank you for telling us.",
    "On my way.",
    "Wonderful.",
    "I can help in half an hour.",
    "That's mine, sorry. I'll fetch it.",
    "Well done.",
    "Noted.",
    "Good to know.",
    "Somebody should take a picture.",
)

SMALL_TALK = (
    (
        "Good morning.",
        "Morning.",
        "Morning all.",
        "Good morning. Is there coffee?",
        "There is now.",
        "Hello from the train.",
    ),
    (
        "Anyone up for lunch at {time}?",
        "Soup again?",
        "The place on the corner has dumplings today.",
        "I'm in, five minutes.",
        "I brought mine, but I'll sit with you.",
    ),
    (
        "What a storm last night.",
        "We lost a branch, nothing else.",
        "The roof held.",
        "I slept through all of it.",
        "The bikes have fallen over, I've picked them up.",
    ),
    (
        "Last one here, I'm locking up.",
        "Thanks, good night.",
        "Lights in the back too?",
        "All off.",
        "See you tomorrow.",
    ),
    (
        "Did anybody see the sunset?",
        "From the roof, yes. Unreal.",
        "I only saw my screen.",
        "It was very orange.",
    ),
    (
        "Sorry, I'm running {count} minutes late.",
        "No hurry.",
        "We haven't started either.",
        "Take your time.",
    ),
)

RANDOM_TALK = (
    (
        "Which book should I take on a long train ride?",
        "Something with short chapters.",
        "The one about the lighthouse.",
        "Whatever you take, you will look out of the window.",
        "I can lend you the one with {count} pages on eels.",
    ),
    (
        "Today's question: what is the best tool that costs less than lunch?",
        "A marking knife.",
        "Good tweezers.",
        "A headlamp, and it isn't close.",
        "Masking tape. It's a tool, I'll defend this.",
        "A pencil that somebody else has sharpened.",
    ),
    (
        "My cat has learned how to open the fridge.",
        "Promote it.",
        "Picture or it did not happen.",
        "Ours opens the door and then shouts at it.",
        "Child locks work. For about a week.",
    ),
    (
        "I've baked {count} loaves this month and I'm not ashamed.",
        "Bring some.",
        "What flour?",
        "Half rye, half whatever is left.",
        "There's butter in the fridge here. Just saying.",
    ),
    (
        "Film night on {day}. Suggestions?",
        "Something with subtitles.",
        "Something without.",
        "The one with the submarine.",
        "We've had the submarine {count} times.",
        "And I'd see it again.",
    ),
    (
        "I counted: there are {count} screwdrivers on the wall, and none is the one I need.",
        "It's in your pocket.",
        "It was in my pocket.",
        "It's always in the pocket.",
    ),
    (
        "Does anyone play chess?",
        "Badly.",
        "Slowly.",
        "I play well and lose anyway.",
        "{day} at {time} at the long table?",
        "Done.",
    ),
    (
        "I walked here today, {count} minutes along the river.",
        "Any herons?",
        "Two, and one very bored fisherman.",
        "I should do that too.",
    ),
    (
        "What are you all listening to while you work?",
        "The vacuum.",
        "The same record since spring.",
        "A podcast on bridges. It is gripping.",
        "Silence. You should try it.",
    ),
)

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
